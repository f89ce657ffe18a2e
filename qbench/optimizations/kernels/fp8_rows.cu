// Rows of activations to e4m3 with one scale a row, in one pass: read once, written once.
// Optionally through GELU (tanh) or GEGLU, which otherwise cost a pass of their own over a
// feed-forward's widest tensor. Needs sm_89 or newer.

#define THREADS 256
#define GELU_TANH 1
#define GEGLU 2  // a row has twice `columns` values: the first half times GELU (erf) of the second

__device__ __forceinline__ float gelu_tanh(float x) {
    float t, u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(u));
    return 0.5f * x * (1.0f + t);
}

__device__ __forceinline__ float gelu_erf(float x) {
    return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
}

__device__ __forceinline__ float value(uint4 of, int j, int is_bf16) {
    u32 words[4] = {of.x, of.y, of.z, of.w};
    return to_float((u16)(words[j / 2] >> (16 * (j % 2))), is_bf16);
}

// A row is LANES threads' work; each holds VECTORS of 8 values in registers.
template <int LANES, int VECTORS>
__device__ __forceinline__ void quantize(
    const u16* x, u8* out, float* scale, int rows, int columns, int activation, int is_bf16) {
    __shared__ float warp_top[THREADS / 32];
    const long long row = (long long)blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    const int lane = threadIdx.x % LANES;
    if (row >= rows) return;  // a whole warp, and only where no other waits for it
    const long long width = activation == GEGLU ? 2 * columns : columns;
    const uint4* from = reinterpret_cast<const uint4*>(x + row * width);
    float values[VECTORS][8], top = 1e-12f;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        int at = i * LANES + lane;
        if (at * 8 >= columns) break;
        uint4 raw = from[at], gate = activation == GEGLU ? from[columns / 8 + at] : raw;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float y = value(raw, j, is_bf16);
            if (activation == GELU_TANH) y = gelu_tanh(y);
            if (activation == GEGLU) y *= gelu_erf(value(gate, j, is_bf16));
            values[i][j] = y;
            top = fmaxf(top, fabsf(y));
        }
    }
#pragma unroll
    for (int step = 16; step; step /= 2)
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
    if (LANES > 32) {
        if (threadIdx.x % 32 == 0) warp_top[threadIdx.x / 32] = top;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < THREADS / 32; i++) top = fmaxf(top, warp_top[i]);
    }
    float f = 448.0f / top;
    uint2* to = reinterpret_cast<uint2*>(out + row * columns);
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        int at = i * LANES + lane;
        if (at * 8 >= columns) break;
        float* y = values[i];
        to[at] = make_uint2(to_e4m3x4(y[0] * f, y[1] * f, y[2] * f, y[3] * f),
                            to_e4m3x4(y[4] * f, y[5] * f, y[6] * f, y[7] * f));
    }
    if (lane == 0) scale[row] = top / 448.0f;
}

// Widths of rows, each a kernel: a UNet's are 320 wide and many, so a block takes eight.
#define KERNEL(name, lanes, vectors)                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS) name(                                \
        const u16* x, u8* out, float* scale, int rows, int columns, int activation,            \
        int is_bf16) {                                                                         \
        quantize<lanes, vectors>(x, out, scale, rows, columns, activation, is_bf16);           \
    }

KERNEL(quantize_short_rows, 32, 5)  // of up to 1,280 values
KERNEL(quantize_rows, 256, 4)       // of up to 8,192
KERNEL(quantize_long_rows, 256, 8)  // of up to 16,384
