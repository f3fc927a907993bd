// What WGSL has and CUDA C++ lacks: vectors with arithmetic, and functions by WGSL's definitions.
typedef unsigned int u32;
typedef int i32;
typedef float f32;
#define FN static __device__ __forceinline__

// Only loaded and converted, so that no header of the toolkit is needed at run time.
struct f16 { unsigned short bits; };
template <class T> struct vec3 { T x, y, z; };
template <class T> struct alignas(4 * sizeof(T)) vec4 { T x, y, z, w; };

template <class T> FN vec4<T> splat(T v) { return {v, v, v, v}; }
template <class T> FN T at(vec4<T> v, u32 i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

#define ARITHMETIC(op) \
    template <class T> FN vec4<T> operator op(vec4<T> a, vec4<T> b) { return {a.x op b.x, a.y op b.y, a.z op b.z, a.w op b.w}; } \
    template <class T> FN vec4<T> operator op(vec4<T> a, T b) { return a op splat(b); } \
    template <class T> FN vec4<T> operator op(T a, vec4<T> b) { return splat(a) op b; }
ARITHMETIC(+)
ARITHMETIC(-)
ARITHMETIC(*)
ARITHMETIC(/)
#define COMPARISON(op) \
    template <class T> FN vec4<bool> operator op(vec4<T> a, vec4<T> b) { return {a.x op b.x, a.y op b.y, a.z op b.z, a.w op b.w}; }
COMPARISON(==)
COMPARISON(!=)
COMPARISON(<)
COMPARISON(<=)
COMPARISON(>)
COMPARISON(>=)
FN vec4<bool> operator&(vec4<bool> a, vec4<bool> b) { return {a.x && b.x, a.y && b.y, a.z && b.z, a.w && b.w}; }
FN vec4<bool> operator|(vec4<bool> a, vec4<bool> b) { return {a.x || b.x, a.y || b.y, a.z || b.z, a.w || b.w}; }
FN vec4<bool> operator!(vec4<bool> a) { return {!a.x, !a.y, !a.z, !a.w}; }
FN vec4<f32> operator-(vec4<f32> a) { return {-a.x, -a.y, -a.z, -a.w}; }

// Signed arithmetic wraps in WGSL.
FN i32 wrapping_add(i32 a, i32 b) { return (i32)((u32)a + (u32)b); }
FN i32 wrapping_sub(i32 a, i32 b) { return (i32)((u32)a - (u32)b); }
FN i32 wrapping_mul(i32 a, i32 b) { return (i32)((u32)a * (u32)b); }

template <class T> FN T choose(bool c, T yes, T no) { return c ? yes : no; }
template <class T> FN vec4<T> choose(vec4<bool> c, vec4<T> yes, vec4<T> no) {
    return {c.x ? yes.x : no.x, c.y ? yes.y : no.y, c.z ? yes.z : no.z, c.w ? yes.w : no.w};
}

// Conversions; floats out of an integer's range saturate.
FN f32 to_f32(f32 v) { return v; }
FN f32 to_f32(i32 v) { return (f32)v; }
FN f32 to_f32(u32 v) { return (f32)v; }
FN f32 to_f32(bool v) { return v ? 1.0f : 0.0f; }
FN f32 to_f32(f16 v) { f32 r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v.bits)); return r; }
FN i32 to_i32(f32 v) { return __float2int_rz(v); }
FN i32 to_i32(i32 v) { return v; }
FN i32 to_i32(u32 v) { return (i32)v; }
FN i32 to_i32(bool v) { return v ? 1 : 0; }
FN u32 to_u32(f32 v) { return __float2uint_rz(v); }
FN u32 to_u32(i32 v) { return (u32)v; }
FN u32 to_u32(u32 v) { return v; }
FN u32 to_u32(bool v) { return v ? 1u : 0u; }
template <class T> FN vec4<f32> to_f32(vec4<T> v) { return {to_f32(v.x), to_f32(v.y), to_f32(v.z), to_f32(v.w)}; }
template <class T> FN vec4<i32> to_i32(vec4<T> v) { return {to_i32(v.x), to_i32(v.y), to_i32(v.z), to_i32(v.w)}; }
template <class T> FN vec4<u32> to_u32(vec4<T> v) { return {to_u32(v.x), to_u32(v.y), to_u32(v.z), to_u32(v.w)}; }

#define MATH1(name, expression) \
    FN f32 math_##name(f32 v) { return expression; } \
    FN vec4<f32> math_##name(vec4<f32> v) { return {math_##name(v.x), math_##name(v.y), math_##name(v.z), math_##name(v.w)}; }
MATH1(abs, fabsf(v))
MATH1(ceil, ceilf(v))
MATH1(floor, floorf(v))
MATH1(round, rintf(v))
MATH1(trunc, truncf(v))
MATH1(sign, v > 0.0f ? 1.0f : v < 0.0f ? -1.0f : v)
MATH1(sqrt, sqrtf(v))
MATH1(inverseSqrt, rsqrtf(v))
MATH1(exp, expf(v))
MATH1(exp2, exp2f(v))
MATH1(log, logf(v))
MATH1(log2, log2f(v))
MATH1(sin, sinf(v))
MATH1(cos, cosf(v))
MATH1(tan, tanf(v))
MATH1(atan, atanf(v))
MATH1(sinh, sinhf(v))
MATH1(cosh, coshf(v))
MATH1(tanh, tanhf(v))
#define MATH2(name, expression) \
    FN f32 math_##name(f32 a, f32 b) { return expression; } \
    FN vec4<f32> math_##name(vec4<f32> a, vec4<f32> b) { return {math_##name(a.x, b.x), math_##name(a.y, b.y), math_##name(a.z, b.z), math_##name(a.w, b.w)}; }
MATH2(min, fminf(a, b))
MATH2(max, fmaxf(a, b))
MATH2(pow, powf(a, b))
MATH2(mod, fmodf(a, b))
FN i32 math_abs(i32 v) { return v < 0 ? wrapping_sub(0, v) : v; }
FN i32 math_min(i32 a, i32 b) { return a < b ? a : b; }
FN i32 math_max(i32 a, i32 b) { return a > b ? a : b; }
FN u32 math_min(u32 a, u32 b) { return a < b ? a : b; }
FN u32 math_max(u32 a, u32 b) { return a > b ? a : b; }
template <class T> FN T math_clamp(T v, T low, T high) { return math_min(math_max(v, low), high); }
FN f32 math_fma(f32 a, f32 b, f32 c) { return fmaf(a, b, c); }
FN vec4<f32> math_fma(vec4<f32> a, vec4<f32> b, vec4<f32> c) { return {fmaf(a.x, b.x, c.x), fmaf(a.y, b.y, c.y), fmaf(a.z, b.z, c.z), fmaf(a.w, b.w, c.w)}; }
FN f32 math_dot(vec4<f32> a, vec4<f32> b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

// The lanes of a warp that exist in a workgroup of `threads`.
FN u32 lanes(u32 threads) { return threads < 32 ? (1u << threads) - 1u : 0xffffffffu; }
template <class T> FN T broadcast(u32 threads, T v, u32 lane) { return __shfl_sync(lanes(threads), v, lane); }
template <class T> FN vec4<T> broadcast(u32 threads, vec4<T> v, u32 lane) {
    return {broadcast(threads, v.x, lane), broadcast(threads, v.y, lane), broadcast(threads, v.z, lane), broadcast(threads, v.w, lane)};
}

// Since sm_90 a kernel may begin before the one in front of it has ended: here it lets the next one begin, if that is wanted, and waits
// until what those in front of it wrote is there. The compiler must not take that for written long ago.
#if __CUDA_ARCH__ >= 900
#define FROM_BEFORE
FN void take_turn(u32 overlapped) {
    if (overlapped) asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
}
#else
#define FROM_BEFORE __restrict__
FN void take_turn(u32) {}
#endif
