// Numbers that are stored as f16: loaded they are f32, stored they are rounded to the nearest, which from 65520 on is infinite.
FN unsigned short half_bits(f32 v) { unsigned short r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v)); return r; }
FN f32 half_value(u32 bits) { return to_f32(f16{(unsigned short)bits}); }
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
