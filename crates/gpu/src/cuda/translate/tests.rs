//! Small kernels and what becomes of them.

use super::*;

/// With f16.
fn translate(source: &str, overrides: &[(&str, f64)], halves: u8) -> Result<Kernel> {
    super::translate(source, overrides, halves, Half::F16)
}

/// A kernel over one input and one output; `body` is in `main`, `before` in front of it.
fn shader(before: &str, body: &str) -> String {
    format!(
        "struct Params {{ offsets: array<vec4<u32>, 2>, count: u32, scale: f32, }}\n\
         @group(0) @binding(0) var<uniform> p: Params;\n\
         @group(0) @binding(2) var<storage, read_write> y: array<f32>;\n\
         @group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;\n{before}\n\
         @compute @workgroup_size(64)\n\
         fn main(@builtin(workgroup_id) group: vec3<u32>,\n    \
         @builtin(local_invocation_index) thread: u32) {{\n{body}\n}}\n"
    )
}

fn translated(before: &str, body: &str) -> Kernel {
    let source = shader(before, body);
    translate(&source, &[], 0).unwrap_or_else(|e| panic!("{e}\n{source}"))
}

fn refusal(before: &str, body: &str) -> String {
    translate(&shader(before, body), &[], 0).unwrap_err().to_string()
}

#[test]
fn the_interface_is_parameters_then_buffers_by_binding() {
    let kernel = translated("", "y[p.offsets[0][1] + thread] = x[thread].y * p.scale;");
    assert_eq!((kernel.threads, kernel.buffers, kernel.params_bytes), ([64, 1, 1], 2, 48));
    let signature = kernel.source.lines().find(|l| l.contains("__global__")).unwrap();
    let (x, y) = (signature.find("vec4<f32>*").unwrap(), signature.find(", f32*").unwrap());
    assert!(x < y && signature.contains("const vec4<f32>* __restrict__"), "{signature}");
    assert!(kernel.source.contains("static_assert(sizeof("), "{}", kernel.source);
    assert!(kernel.source.contains("params.m0offsets[0].y"), "{}", kernel.source);
}

#[test]
fn buffers_of_16_bits_convert_and_words_stay() {
    let source = shader("", "y[thread] = x[thread].y + p.scale;");
    let kernel = translate(&source, &[], 0b11).unwrap();
    let signature = kernel.source.lines().find(|l| l.contains("__global__")).unwrap();
    assert!(signature.contains("const half4* __restrict__ g"), "{signature}");
    assert!(signature.contains(", half1* __restrict__ g"), "{signature}");
    assert!(kernel.source.contains(HALF) && !translated("", "y[0] = 1.0;").source.contains(HALF));
    // With bf16 the same, but for what stands before it.
    let bfloat = super::translate(&source, &[], 0b11, Half::Bf16).unwrap();
    let defined = format!("{PRELUDE}{BFLOAT}");
    assert_eq!(bfloat.source.strip_prefix(&defined), kernel.source.strip_prefix(PRELUDE));
    // The second alone.
    let kernel = translate(&source, &[], 0b10).unwrap();
    let signature = kernel.source.lines().find(|l| l.contains("__global__")).unwrap();
    assert!(signature.contains("vec4<f32>*") && signature.contains("half1*"), "{signature}");
    let words = source.replace("array<vec4<f32>>", "array<vec4<u32>>");
    let words = words.replace("x[thread].y", "f32(x[thread].y)");
    let kernel = translate(&words, &[], 0b01).unwrap();
    assert!(kernel.source.contains("const vec4<u32>* __restrict__"), "{}", kernel.source);
    let integers = words.replace("array<vec4<u32>>", "array<vec4<i32>>");
    let error = translate(&integers, &[], 0b01).unwrap_err().to_string();
    assert!(error.contains("a buffer of 16-bit numbers"), "{error}");
}

#[test]
fn loads_happen_where_they_stand() {
    // The old value must not be read again after the store.
    let kernel = translated("", "let old = y[0]; y[0] = 1.0; y[1] = old;");
    let main = kernel.source.split("__global__").nth(1).unwrap();
    let load = main.find("const f32 e").unwrap();
    assert!(load < main.find("[0u] = ").or(main.find("[0] = ")).unwrap(), "{main}");
}

#[test]
fn continue_reaches_the_loops_end() {
    let body = "for (var i = 0u; i < p.count; i++) { if (i == thread) { continue; } y[i] = 0.0; }";
    let main = translated("", body).source;
    let (jump, label) = (main.find("goto next1;").unwrap(), main.find("next1:;").unwrap());
    // The increment follows the label.
    assert!(jump < label && main[label..].contains("+ 1u"), "{main}");
    let plain = translated("", "for (var i = 0u; i < p.count; i++) { y[i] = 0.0; }").source;
    assert!(!plain.contains("goto"));
}

#[test]
fn workgroups_share_memory_and_meet_at_barriers() {
    let kernel = translated(
        "var<workgroup> tile: array<f32, 64>;",
        "tile[thread] = 1.0; workgroupBarrier(); y[thread] = tile[63u - thread];",
    );
    assert!(kernel.source.contains("static __shared__ f32 g3tile[64];"), "{}", kernel.source);
    assert!(kernel.source.contains("__syncthreads();"));
}

#[test]
fn much_memory_comes_at_launch() {
    let before = "var<workgroup> few: array<f32, 3>; var<workgroup> many: array<vec4<u32>, 4096>;";
    let body = "few[0] = 1.0; many[thread] = vec4<u32>(); y[thread] = few[0];";
    let kernel = translated(before, body);
    // Each array begins where patterns of banks do.
    assert_eq!(kernel.shared_bytes, 1024 + (64 << 10));
    for part in [
        AT_LAUNCH,
        "#define g3few ((f32*)(shared_memory + 0u))",
        "#define g4many ((vec4<u32>*)(shared_memory + 1024u))",
    ] {
        assert!(kernel.source.contains(part), "{part} in {}", kernel.source);
    }
    let little = translated("var<workgroup> few: array<f32, 3>;", "few[0] = 1.0; y[0] = few[0];");
    assert!(little.shared_bytes == 0 && !little.source.contains(AT_LAUNCH));
}

#[test]
fn what_copies_load_the_hardware_moves() {
    let before = "var<workgroup> tile: array<vec4<f32>, 64>;\n\
                  fn copy_there(to: u32, from_at: u32, there: bool) {\n\
                  if (there) { tile[to] = x[from_at]; } else { tile[to] = vec4<f32>(); } }";
    let source = translated(before, "copy_there(thread, 7u, p.count > 3u);").source;
    assert!(source.contains("copy_async(&g3tile[a0], &g2x[a1]);"), "{source}");
    assert!(source.contains("g3tile[a0] = vec4<f32>{};"), "{source}");
}

#[test]
fn signed_arithmetic_wraps_and_literals_keep_their_bits() {
    let kernel = translated("", "y[0] = f32(i32(thread) * 3 - 1) * 0.1;");
    assert!(kernel.source.contains("wrapping_sub(wrapping_mul("), "{}", kernel.source);
    assert!(kernel.source.contains("(1e-1f)"), "{}", kernel.source);
    let text = expressions::literal(naga::Literal::F32(f32::from_bits(0x7fc0_0000))).unwrap();
    assert_eq!(text, "__int_as_float(0x7fc00000)");
}

#[test]
fn overrides_become_constants() {
    let source = shader("override WIDTH: u32 = 4u; override SCALE: f32;", "y[WIDTH] = SCALE;");
    let kernel = translate(&source, &[("SCALE", 0.5)], 0).unwrap();
    assert!(kernel.source.contains("static constexpr u32 o0 = 4u;"), "{}", kernel.source);
    assert!(kernel.source.contains("static constexpr f32 o1 = (5e-1f);"), "{}", kernel.source);
    let error = translate(&source, &[], 0).unwrap_err().to_string();
    assert!(error.contains("SCALE"), "{error}");
    assert!(translate(&source, &[("DEPTH", 1.0)], 0).is_err());
    assert!(translate(&source, &[("SCALE", 0.5), ("WIDTH", 0.5)], 0).is_err());
}

#[test]
fn what_is_not_covered_is_named() {
    for (before, body, named) in [
        ("", "y[0] = smoothstep(0.0, 1.0, p.scale);", "SmoothStep"),
        ("", "switch thread { case 0u: { y[0] = 1.0; } default: {} }", "Switch"),
        ("", "y[0] = x[0].xy.x;", "Swizzle"),
        ("", "y[0] = f32(1 << thread);", "ShiftLeft"),
        ("", "y[0] = f32(arrayLength(&y));", "ArrayLength"),
        ("var<private> v: f32;", "y[0] = v;", "Private"),
        ("var<workgroup> n: atomic<u32>;", "atomicAdd(&n, 1u);", "workgroup memory"),
        ("", "y[0] = subgroupAdd(p.scale);", "SubgroupCollectiveOperation"),
    ] {
        let error = refusal(before, body);
        assert!(error.starts_with("no CUDA form of ") && error.contains(named), "{error}");
    }
    assert!(matches!(translate("fn main( {", &[], 0), Err(TranslateError::Parse(_))));
    let invalid = shader("fn f() -> f32 { return 1.0; }", "y[thread] = x[thread];");
    assert!(translate(&invalid, &[], 0).is_err());
}
