// Numbers of 16 bits on the CPU.
static f32 of_bits(u32 bits) { f32 v; memcpy(&v, &bits, 4); return v; }
#ifdef BFLOAT
static f32 of_half(u32 bits) { return of_bits(bits << 16); }
// To the nearest, in the middle to the even one.
static u32 half_of(f32 v) {
    u32 bits; memcpy(&bits, &v, 4);
    return v != v ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
#else
static f32 of_half(u32 bits) { const unsigned short low = (unsigned short)bits; _Float16 h; memcpy(&h, &low, 2); return (f32)h; }
static u32 half_of(f32 v) { const _Float16 h = (_Float16)v; unsigned short bits; memcpy(&bits, &h, 2); return bits; }
#endif
