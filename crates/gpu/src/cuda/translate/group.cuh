// What four warps do together: Hopper's products (sm_90a) of a left side in registers and a right side in shared memory, which go
// on while the threads do other things. The right side lies in lines of 64 bytes whose chunks are turned by half of the line's
// number. Where the left side is there as well, both lie in lines of 128 bytes whose chunks are turned by the line's number.

// Where it begins: in x in units of 16 bytes, as descriptors have it.
FN vec4<u32> shared_place(const vec4<u32>* p) { return {shared_address(p) / 16u, 0u, 0u, 0u}; }
// Its descriptor from chunk 2 * step on: eight lines are 512 bytes, a pattern of 64 bytes; or twice that.
FN unsigned long long descriptor_64(vec4<u32> place, u32 step) {
    return (unsigned long long)(place.x + 2u * step) | 1ull << 16 | 32ull << 32 | 2ull << 62;
}
FN unsigned long long descriptor_128(vec4<u32> place, u32 step) {
    return (unsigned long long)(place.x + 2u * step) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
FN void native_group_start() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
FN void native_group_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
FN void native_group_wait() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
FN void native_group_wait_but_one() { asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory"); }
// What this thread wrote to shared memory is seen by the products after the next barrier.
FN void native_group_publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Nothing, but the left sides are there before what follows.
FN void native_group_take(vec4<u32>& a, vec4<u32>& b) {
    asm volatile("" : "+r"(a.x), "+r"(a.y), "+r"(a.z), "+r"(a.w), "+r"(b.x), "+r"(b.y), "+r"(b.z), "+r"(b.w) : : "memory");
}

#define SUMS(s) "+f"(s.x), "+f"(s.y), "+f"(s.z), "+f"(s.w)
#define SUMS_32 SUMS(s0), SUMS(s1), SUMS(s2), SUMS(s3)
#define SUMS_64 SUMS_32, SUMS(s4), SUMS(s5), SUMS(s6), SUMS(s7)
#define SUMS_96 SUMS_64, SUMS(s8), SUMS(s9), SUMS(s10), SUMS(s11)
#define SUMS_128 SUMS_96, SUMS(s12), SUMS(s13), SUMS(s14), SUMS(s15)
#define SUMS_192 SUMS_128, SUMS(s16), SUMS(s17), SUMS(s18), SUMS(s19), SUMS(s20), SUMS(s21), SUMS(s22), SUMS(s23)
#define SUMS_256 SUMS_192, SUMS(s24), SUMS(s25), SUMS(s26), SUMS(s27), SUMS(s28), SUMS(s29), SUMS(s30), SUMS(s31)
#define TAKEN_32 vec4<f32>&s0, vec4<f32>&s1, vec4<f32>&s2, vec4<f32>&s3
#define TAKEN_64 TAKEN_32, vec4<f32>&s4, vec4<f32>&s5, vec4<f32>&s6, vec4<f32>&s7
#define TAKEN_96 TAKEN_64, vec4<f32>&s8, vec4<f32>&s9, vec4<f32>&s10, vec4<f32>&s11
#define TAKEN_128 TAKEN_96, vec4<f32>&s12, vec4<f32>&s13, vec4<f32>&s14, vec4<f32>&s15
#define TAKEN_192 TAKEN_128, vec4<f32>&s16, vec4<f32>&s17, vec4<f32>&s18, vec4<f32>&s19, vec4<f32>&s20, vec4<f32>&s21, vec4<f32>&s22, vec4<f32>&s23
#define TAKEN_256 TAKEN_192, vec4<f32>&s24, vec4<f32>&s25, vec4<f32>&s26, vec4<f32>&s27, vec4<f32>&s28, vec4<f32>&s29, vec4<f32>&s30, vec4<f32>&s31
#define LIST_32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define LIST_64 LIST_32 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define LIST_96 LIST_64 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define LIST_128 LIST_96 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define LIST_192 LIST_128 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define LIST_256 LIST_192 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// s + a * b for 64 x n sums, each warp 16 rows of them, each of s 8 columns, among the lanes as in native_multiply, as is a.
#define GROUP_MULTIPLY(name, n, form, inputs, order) \
    FN void name##_##n(TAKEN_##n, vec4<u32> a, vec4<u32> b, u32 step) { \
        asm volatile("{.reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n" #n form " {" LIST_##n "}, " inputs \
            ", p, 1, 1" order ";}" \
            : SUMS_##n : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(descriptor_64(b, step)) : "memory"); \
    }
// The same with both sides in shared memory.
#define GROUP_MULTIPLY_LINES(n, inputs) \
    FN void native_group_multiply_lines_##n(TAKEN_##n, vec4<u32> a, vec4<u32> b, u32 step) { \
        asm volatile("{.reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." HALF_NAME "." HALF_NAME " {" LIST_##n "}, " inputs \
            ", p, 1, 1, 0, 0;}" \
            : SUMS_##n : "l"(descriptor_128(a, step)), "l"(descriptor_128(b, step)) : "memory"); \
    }
// And native_group_hold: nothing, but the sums are what they are before and after it: the compiler knows nothing of products that
// are under way.
#define GROUP(n, inputs, lines) \
    GROUP_MULTIPLY(native_group_multiply_tf32, n, "k8.f32.tf32.tf32", inputs, "") \
    GROUP_MULTIPLY(native_group_multiply_half, n, "k16.f32." HALF_NAME "." HALF_NAME, inputs, ", 0") \
    GROUP_MULTIPLY_LINES(n, lines) \
    FN void native_group_hold_##n(TAKEN_##n) { asm volatile("" : SUMS_##n : : "memory"); }
GROUP(32, "{%16, %17, %18, %19}, %20", "%16, %17")
GROUP(64, "{%32, %33, %34, %35}, %36", "%32, %33")
GROUP(96, "{%48, %49, %50, %51}, %52", "%48, %49")
GROUP(128, "{%64, %65, %66, %67}, %68", "%64, %65")
GROUP(192, "{%96, %97, %98, %99}, %100", "%96, %97")
GROUP(256, "{%128, %129, %130, %131}, %132", "%128, %129")
