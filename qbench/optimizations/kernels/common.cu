// What every kernel here begins with: `build` puts it before their sources.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;
typedef unsigned char u8;

__device__ __forceinline__ float to_float(u16 x, int is_bf16) {
    float y;
    if (is_bf16) return __uint_as_float((u32)x << 16);
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}

__device__ __forceinline__ u32 from_floats(float low, float high, int is_bf16) {
    u32 y;
    if (is_bf16)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// Eight values of 16 bits, as floats.
__device__ __forceinline__ void to_floats(uint4 raw, float* x, int is_bf16) {
    u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[2 * i] = to_float((u16)words[i], is_bf16);
        x[2 * i + 1] = to_float((u16)(words[i] >> 16), is_bf16);
    }
}

__device__ __forceinline__ u32 to_e4m3x4(float a, float b, float c, float d) {
    u16 low, high;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(b), "f"(a));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(d), "f"(c));
    return (u32)low | ((u32)high << 16);
}
