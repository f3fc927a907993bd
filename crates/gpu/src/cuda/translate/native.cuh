// What a warp does together: matrix units, and copies that the hardware makes on the side (sm_80 and newer).

// Operands of 16 bits, in the instructions' names.
#ifdef BFLOAT
#define HALF_NAME "bf16"
#else
#define HALF_NAME "f16"
#endif

// f32 rounded to 11 significant bits.
FN u32 round_tf32(f32 v) { u32 r; asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(v)); return r; }
FN vec4<u32> native_round_tf32(vec4<f32> v) { return {round_tf32(v.x), round_tf32(v.y), round_tf32(v.z), round_tf32(v.w)}; }
// Two f32 as 16 bits each, the first in the lower half.
FN u32 pack_half(f32 low, f32 high) { u32 r; asm("cvt.rn." HALF_NAME "x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r; }
FN vec4<u32> native_pack_half(vec4<f32> low, vec4<f32> high) {
    return {pack_half(low.x, low.y), pack_half(low.z, low.w), pack_half(high.x, high.y), pack_half(high.z, high.w)};
}

// sum + a * b; a is 16 x 8 (of 16 bits: 16 x 16), b 8 x 8 (16 x 8), shared out among the lanes as the instruction has it: of the sum,
// lane i has columns 2 (i % 4) and the next of rows i / 4 (x, y) and i / 4 + 8 (z, w).
FN vec4<f32> native_multiply_tf32(vec4<u32> a, u32 low, u32 high, vec4<f32> sum) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum.x), "+f"(sum.y), "+f"(sum.z), "+f"(sum.w)
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(low), "r"(high));
    return sum;
}
FN vec4<f32> native_multiply_half(vec4<u32> a, u32 low, u32 high, vec4<f32> sum) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." HALF_NAME "." HALF_NAME ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum.x), "+f"(sum.y), "+f"(sum.z), "+f"(sum.w)
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(low), "r"(high));
    return sum;
}
// Columns 4 (i % 4 / 2) .. of a sum's row i / 4 (even lanes) or i / 4 + 8 (odd lanes).
FN vec4<f32> native_exchange(vec4<f32> v) {
    const bool odd = threadIdx.x % 2u;
    const f32 first = __shfl_xor_sync(0xffffffffu, odd ? v.x : v.z, 1), second = __shfl_xor_sync(0xffffffffu, odd ? v.y : v.w, 1);
    if (odd) return {first, second, v.z, v.w};
    return {v.x, v.y, first, second};
}

// Waits for the other blocks of the cluster, if there are any: what they wrote before is there.
#if __CUDA_ARCH__ >= 900
FN void native_join() { asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory"); }
#else
FN void native_join() {}
#endif

// Over the four lanes that hold a row of a sum.
FN f32 native_quad_max(f32 v) {
    v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}
FN f32 native_quad_sum(f32 v) {
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
}

// The same bits.
FN vec4<u32> native_bits(vec4<f32> v) { return {__float_as_uint(v.x), __float_as_uint(v.y), __float_as_uint(v.z), __float_as_uint(v.w)}; }
FN vec4<f32> native_numbers(vec4<u32> v) { return {__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w)}; }

FN u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
// Four 8 x 8 matrices of 16-bit elements (8 x 4 of 32 bits) in shared memory: lanes 8 i .. point to the rows of the i-th.
FN vec4<u32> load_matrices(const vec4<u32>* row) {
    vec4<u32> r;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "r"(shared_address(row)) : "memory");
    return r;
}
// The same, each matrix transposed.
FN vec4<u32> load_turned(const vec4<u32>* row) {
    vec4<u32> r;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "r"(shared_address(row)) : "memory");
    return r;
}
// 16 bytes from device memory to shared memory, there after one of the waits and a barrier.
template <class T> FN void copy_async(vec4<T>* to, const vec4<T>* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(shared_address(to)), "l"(from) : "memory");
}
FN void native_wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
// Copies since the last time belong together: all of them are waited for but the last so many.
FN void native_end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// As many as rings of up to eight slices need.
#define WAIT_COPIES(n) FN void native_wait_copies_but_##n() { asm volatile("cp.async.wait_group " #n ";" ::: "memory"); }
WAIT_COPIES(1)
WAIT_COPIES(2)
WAIT_COPIES(3)
WAIT_COPIES(4)
WAIT_COPIES(5)
