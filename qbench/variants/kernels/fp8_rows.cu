// Rows of activations to e4m3 with one scale a row, in one pass: read once, written once.
// Optionally through GELU (tanh), which otherwise costs a pass of its own over a feed-forward's
// widest tensor. Needs sm_89 or newer.

#define THREADS 256

__device__ __forceinline__ float gelu_tanh(float x) {
    float t, u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(u));
    return 0.5f * x * (1.0f + t);
}

template <int VECTORS>  // of 8 values a thread, all of which it holds in registers
__device__ __forceinline__ void quantize(
    const u16* x, u8* out, float* scale, int columns, int gelu, int is_bf16) {
    __shared__ float warp_top[THREADS / 32];
    const uint4* row = reinterpret_cast<const uint4*>(x + (long long)blockIdx.x * columns);
    float values[VECTORS][8], top = 1e-12f;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        int at = i * THREADS + threadIdx.x;
        if (at * 8 >= columns) break;
        uint4 raw = row[at];
        u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float y = to_float((u16)(words[j / 2] >> (16 * (j % 2))), is_bf16);
            values[i][j] = gelu ? gelu_tanh(y) : y;
            top = fmaxf(top, fabsf(values[i][j]));
        }
    }
#pragma unroll
    for (int step = 16; step; step /= 2)
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
    if (threadIdx.x % 32 == 0) warp_top[threadIdx.x / 32] = top;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < THREADS / 32; i++) top = fmaxf(top, warp_top[i]);
    float f = 448.0f / top;
    uint2* to = reinterpret_cast<uint2*>(out + (long long)blockIdx.x * columns);
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        int at = i * THREADS + threadIdx.x;
        if (at * 8 >= columns) break;
        float* y = values[i];
        to[at] = make_uint2(to_e4m3x4(y[0] * f, y[1] * f, y[2] * f, y[3] * f),
                            to_e4m3x4(y[4] * f, y[5] * f, y[6] * f, y[7] * f));
    }
    if (threadIdx.x == 0) scale[blockIdx.x] = top / 448.0f;
}

extern "C" __global__ void __launch_bounds__(THREADS) quantize_rows(  // of up to 8,192 values
    const u16* x, u8* out, float* scale, int columns, int gelu, int is_bf16) {
    quantize<4>(x, out, scale, columns, gelu, is_bf16);
}

extern "C" __global__ void __launch_bounds__(THREADS) quantize_long_rows(  // of up to 16,384
    const u16* x, u8* out, float* scale, int columns, int gelu, int is_bf16) {
    quantize<8>(x, out, scale, columns, gelu, is_bf16);
}
