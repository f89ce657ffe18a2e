// Rows of activations on their way into FP8 GEMMs and into attention: read once, written once, a row
// in the registers of a warp or, where it is too wide for one, of a block. Needs sm_89 or newer.

#define THREADS 256

template <int LANES>
__device__ __forceinline__ float over_row(float x, bool sum, float* shared) {
#pragma unroll
    for (int step = 16; step; step /= 2) {
        float y = __shfl_xor_sync(0xffffffffu, x, step);
        x = sum ? x + y : fmaxf(x, y);
    }
    if (LANES > 32) {
        __syncthreads();  // all have read what was there before
        if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
        __syncthreads();
        const int first = threadIdx.x / LANES * (LANES / 32);
        x = shared[first];
#pragma unroll
        for (int i = 1; i < LANES / 32; i++)
            x = sum ? x + shared[first + i] : fmaxf(x, shared[first + i]);
    }
    return x;
}

__device__ __forceinline__ void load8f(const float* at, float* y) {
    float4 a = reinterpret_cast<const float4*>(at)[0], b = reinterpret_cast<const float4*>(at)[1];
    y[0] = a.x, y[1] = a.y, y[2] = a.z, y[3] = a.w, y[4] = b.x, y[5] = b.y, y[6] = b.z, y[7] = b.w;
}

// What a transformer block does between two GEMMs: x + more * gate (written to `sum`), the layer
// norm of that, times (one + scale), plus shift, to e4m3 with one scale a row.
template <int LANES, int VECTORS>
__device__ __forceinline__ void normalize(
    const u16* x, const u16* more, const float* gate, const float* scale, const float* shift,
    u16* sum, u8* out, float* row_scale, int rows, int columns, int rows_each, float one,
    float eps, int is_bf16) {
    __shared__ float shared[THREADS / 32];
    const long long row = (long long)blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    const int lane = threadIdx.x % LANES;
    if (row >= rows) return;  // a whole warp, and only where no other waits for it
    const long long video = row / rows_each * columns;
    float values[VECTORS][8], total = 0.0f;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const int at = i * LANES + lane;
        float* y = values[i];
        if (at * 8 >= columns) {
#pragma unroll
            for (int j = 0; j < 8; j++) y[j] = 0.0f;
            continue;
        }
        to_floats(reinterpret_cast<const uint4*>(x + row * columns)[at], y, is_bf16);
        if (more) {
            float plus[8], by[8];
            to_floats(reinterpret_cast<const uint4*>(more + row * columns)[at], plus, is_bf16);
            if (gate) {
                load8f(gate + video + at * 8, by);
#pragma unroll
                for (int j = 0; j < 8; j++) plus[j] *= by[j];
            }
            uint4 words;
            u32* w = reinterpret_cast<u32*>(&words);
#pragma unroll
            for (int j = 0; j < 4; j++)
                w[j] = from_floats(y[2 * j] + plus[2 * j], y[2 * j + 1] + plus[2 * j + 1], is_bf16);
            reinterpret_cast<uint4*>(sum + row * columns)[at] = words;
            to_floats(words, y, is_bf16);
        }
#pragma unroll
        for (int j = 0; j < 8; j++) total += y[j];
    }
    const float mean = over_row<LANES>(total, true, shared) / columns;
    float square = 0.0f;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        if ((i * LANES + lane) * 8 >= columns) break;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            values[i][j] -= mean;
            square = fmaf(values[i][j], values[i][j], square);
        }
    }
    const float by = rsqrtf(over_row<LANES>(square, true, shared) / columns + eps);
    float top = 1e-12f;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const int at = i * LANES + lane;
        if (at * 8 >= columns) break;
        float f[8], plus[8];
        load8f(scale + video + at * 8, f);
        load8f(shift + video + at * 8, plus);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            values[i][j] = fmaf(values[i][j] * by, one + f[j], plus[j]);
            top = fmaxf(top, fabsf(values[i][j]));
        }
    }
    top = over_row<LANES>(top, false, shared);
    const float f = 448.0f / top;
    uint2* to = reinterpret_cast<uint2*>(out + row * columns);
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const int at = i * LANES + lane;
        if (at * 8 >= columns) break;
        float* y = values[i];
        to[at] = make_uint2(to_e4m3x4(y[0] * f, y[1] * f, y[2] * f, y[3] * f),
                            to_e4m3x4(y[4] * f, y[5] * f, y[6] * f, y[7] * f));
    }
    if (lane == 0) row_scale[row] = top / 448.0f;
}

#define NORMALIZE(name, lanes, vectors)                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS) name(                                    \
        const u16* x, const u16* more, const float* gate, const float* scale, const float* shift,  \
        u16* sum, u8* out, float* row_scale, int rows, int columns, int rows_each, int is_bf16,    \
        double one, double eps) {                                                                  \
        normalize<lanes, vectors>(x, more, gate, scale, shift, sum, out, row_scale, rows, columns, \
                                  rows_each, (float)one, (float)eps, is_bf16);                     \
    }

NORMALIZE(normalize_short, 32, 6)
NORMALIZE(normalize_long, 256, 4)

// Query and key on their way to attention: RMS norm over all heads, then rotary embedding of
// neighbouring channels. The tables are (tokens, dim), each
// value twice, as diffusers has them: those of an even channel's cosine and an odd one's sine count.
template <int LANES, int VECTORS>
__device__ __forceinline__ void rotate(
    const u16* x, const u16* weight, const float* cosine, const float* sine, u16* out, int rows,
    int columns, int tokens, int dim, float eps, int is_bf16) {
    __shared__ float shared[THREADS / 32];
    const long long row = (long long)blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    const int lane = threadIdx.x % LANES;
    if (row >= rows) return;
    const u16* at_row = x + row * columns;
    float values[VECTORS][8], square = 0.0f;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const int at = i * LANES + lane;
        if (at * 8 >= columns) break;
        to_floats(reinterpret_cast<const uint4*>(at_row)[at], values[i], is_bf16);
#pragma unroll
        for (int j = 0; j < 8; j++) square = fmaf(values[i][j], values[i][j], square);
    }
    const float by = rsqrtf(over_row<LANES>(square, true, shared) / columns + eps);
    const long long token = row % tokens * dim;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const int at = i * LANES + lane;
        if (at * 8 >= columns) break;
        float f[8], c[8], s[8];
        to_floats(reinterpret_cast<const uint4*>(weight)[at], f, is_bf16);
        load8f(cosine + token + at * 8 % dim, c);
        load8f(sine + token + at * 8 % dim, s);
        uint4 words;
        u32* w = reinterpret_cast<u32*>(&words);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float a = values[i][2 * j] * by * f[2 * j], b = values[i][2 * j + 1] * by * f[2 * j + 1];
            w[j] = from_floats(a * c[2 * j] - b * s[2 * j + 1], a * s[2 * j + 1] + b * c[2 * j],
                               is_bf16);
        }
        reinterpret_cast<uint4*>(out + row * columns)[at] = words;
    }
}

#define ROTATE(name, lanes, vectors)                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS) name(                                    \
        const u16* x, const u16* weight, const float* cosine, const float* sine, u16* out,         \
        int rows, int columns, int tokens, int dim, int is_bf16, double eps) {                     \
        rotate<lanes, vectors>(x, weight, cosine, sine, out, rows, columns, tokens, dim,           \
                               (float)eps, is_bf16);                                               \
    }

ROTATE(rotate_short, 32, 6)
ROTATE(rotate_long, 256, 4)
