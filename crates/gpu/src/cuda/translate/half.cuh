// Numbers that are stored in 16 bits: loaded they are f32, stored they are rounded to the nearest. f16 is infinite from 65520 on; bf16
// are the upper halves of f32 (instructions of sm_80 and newer).
#ifdef BFLOAT
FN unsigned short half_bits(f32 v) { unsigned short r; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v)); return r; }
FN f32 half_value(u32 bits) { return __uint_as_float(bits << 16); }
#else
FN unsigned short half_bits(f32 v) { unsigned short r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v)); return r; }
FN f32 half_value(u32 bits) { return to_f32(f16{(unsigned short)bits}); }
#endif
struct half1 {
    unsigned short bits;
    __device__ __forceinline__ operator f32() const { return half_value(bits); }
    __device__ __forceinline__ half1& operator=(f32 v) { bits = half_bits(v); return *this; }
};
struct alignas(8) two_words { u32 low, high; };
// Four of them, moved together.
struct alignas(8) half4 {
    half1 x, y, z, w;
    __device__ __forceinline__ operator vec4<f32>() const {
        const two_words all = *(const two_words*)this;
        return {half_value(all.low), half_value(all.low >> 16), half_value(all.high), half_value(all.high >> 16)};
    }
    __device__ __forceinline__ half4& operator=(vec4<f32> v) {
        *(two_words*)this = {half_bits(v.x) | (u32)half_bits(v.y) << 16, half_bits(v.z) | (u32)half_bits(v.w) << 16};
        return *this;
    }
};
