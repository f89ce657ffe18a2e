// FP8 attention's first passes: statistics of K and V, and all three inputs quantized. In this
// order: common.cu, fp8_attention_layout.cu, this file; compiled for one type (IS_BF16).

#define THREADS 256  // of a block of pack()
#define CHUNK 512    // tokens a block of stats()
#define K_MAX 32.0f
#define V_MAX 448.0f
#define ONE 0x38  // 1.0 in e4m3

__device__ __forceinline__ float power_of_two_above(float x) {
    u32 bits = __float_as_uint(x) & 0x7f800000u;
    return __uint_as_float(bits) == x ? x : __uint_as_float(bits + 0x00800000u);
}

// Eight neighbouring channels of one token and head.
__device__ __forceinline__ uint4 load8(const u16* at) {
    return *reinterpret_cast<const uint4*>(at);
}

// Pass one: per channel the sum of K and the largest |V| of a chunk of tokens. The last come first:
// of them most is left in the cache by whoever wrote them, and pass two finds the first ones there.
// -------------------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(256) stats(
    const u16* k, const u16* v, float* partial, u32* k_norm, int tokens, int heads, int chunks,
    int k_batch, int k_token, int k_head, int v_batch, int v_token, int v_head) {
    const int at_once = 256 / PARTS;
    __shared__ float shared[2][at_once][D + 1];
    int head = blockIdx.x % heads, batch = blockIdx.x / heads;
    int part = threadIdx.x % PARTS, lane_row = threadIdx.x / PARTS;
    const u16* k0 = k + (long long)batch * k_batch + (long long)head * k_head + part * 8;
    const u16* v0 = v + (long long)batch * v_batch + (long long)head * v_head + part * 8;
    float sum[8] = {}, top[8] = {}, x[8];
    const int chunk = chunks - 1 - blockIdx.y, end = min(tokens, (chunk + 1) * CHUNK);
    if (chunk == 0 && threadIdx.x == 0) k_norm[blockIdx.x] = 0;
#pragma unroll 4
    for (int token = chunk * CHUNK + lane_row; token < end; token += at_once) {
        uint4 of_k = load8(k0 + (long long)token * k_token);
        uint4 of_v = load8(v0 + (long long)token * v_token);
        to_floats(of_k, x, IS_BF16);
#pragma unroll
        for (int c = 0; c < 8; c++) sum[c] += x[c];
        to_floats(of_v, x, IS_BF16);
#pragma unroll
        for (int c = 0; c < 8; c++) top[c] = fmaxf(top[c], fabsf(x[c]));
    }
#pragma unroll
    for (int c = 0; c < 8; c++) {
        shared[0][lane_row][part * 8 + c] = sum[c];
        shared[1][lane_row][part * 8 + c] = top[c];
    }
    __syncthreads();
    if (threadIdx.x < 2 * D) {
        int which = threadIdx.x / D, channel = threadIdx.x % D;
        float total = 0.0f;
        for (int row = 0; row < at_once; row++) {
            float y = shared[which][row][channel];
            total = which ? fmaxf(total, y) : total + y;
        }
        partial[((long long)blockIdx.x * chunks + chunk) * 2 * D + threadIdx.x] = total;
    }
}

// Of all chunks: the mean of K's channels, what V's are multiplied by, and what that is undone by.
// `partial` holds sums of K and maxima of V, (heads, chunks, 2, D); `totals` is (heads, 2, D).
extern "C" __global__ void __launch_bounds__(2 * D)
    attention_totals(const float* partial, float* totals, float* v_scale, int tokens, int chunks) {
    const int which = threadIdx.x / D, channel = threadIdx.x % D;
    const float* at = partial + (long long)blockIdx.x * chunks * 2 * D + threadIdx.x;
    float total = 0.0f;
#pragma unroll 32
    for (int i = 0; i < chunks; i++) {
        float y = at[i * 2 * D];
        total = which ? fmaxf(total, y) : total + y;
    }
    if (which) {
        total = fmaxf(total, 1e-20f);
        v_scale[blockIdx.x * D + channel] = total / V_MAX;
    }
    totals[blockIdx.x * 2 * D + threadIdx.x] = which ? V_MAX / total : total / tokens;
}

// Pass two: quantize and lay out -------------------------------------------------------------------

// In which words a core matrix of V^T is put before it is copied out: two more than it has, or the
// threads of a warp, sixteen matrices times two neighbouring words, would write to the same banks.
#define STRIDE 34

// Where there are no queries (q is null) another kernel has quantized them.
extern "C" __global__ void __launch_bounds__(THREADS, 2) pack(
    const u16* q, const u16* k, const u16* v, const float* totals, u8* q8, float2* q_scale,
    u8* tiles, u32* k_norm, int q_tokens, int tokens, int heads, int padded, int q_batch,
    int q_token, int q_head, int k_batch, int k_token, int k_head, int v_batch, int v_token,
    int v_head, double scale) {
    const int at_once = THREADS / PARTS, passes = TILE / at_once;
    const int quads = TILE / 4 / at_once;
    __shared__ float warp_max[THREADS / 32], warp_norm[THREADS / 32];
    __shared__ __align__(16) u32 v_image[V_BYTES / 128 * STRIDE];
    int head = blockIdx.x % heads, batch = blockIdx.x / heads, tile = blockIdx.y;
    int part = threadIdx.x % PARTS, lane_row = threadIdx.x / PARTS;
    const float codes = (float)scale * 1.4426950408889634f * 8.0f;  // of one unit of q.k

    if (q && tile * TILE < q_tokens) {
        const u16* q0 = q + (long long)batch * q_batch + (long long)head * q_head + part * 8;
        uint4 raw[passes];
#pragma unroll
        for (int pass = 0; pass < passes; pass++) {
            int token = min(tile * TILE + pass * at_once + lane_row, q_tokens - 1);
            raw[pass] = load8(q0 + (long long)token * q_token);
        }
#pragma unroll
        for (int pass = 0; pass < passes; pass++) {
            long long row = (long long)blockIdx.x * padded + tile * TILE + pass * at_once + lane_row;
            float x[8];
            to_floats(raw[pass], x, IS_BF16);
            const Query found = quantize_query(x, codes);
            reinterpret_cast<uint2*>(q8 + row * D)[part] = found.codes;
            if (part == 0) q_scale[row] = found.scale;
        }
    }
    int tile_count = tiles_of(tokens);
    if (tile >= tile_count) return;
    u8* out = tiles + ((long long)blockIdx.x * tile_count + tile) * TILE_BYTES;
    const u16* k0 = k + (long long)batch * k_batch + (long long)head * k_head + part * 8;
    const u16* v0 = v + (long long)batch * v_batch + (long long)head * v_head + part * 8;
    const float* of_head = totals + blockIdx.x * 2 * D + part * 8;
    uint4 raw[passes];
#pragma unroll
    for (int pass = 0; pass < passes; pass++) {
        int token = min(tile * TILE + pass * at_once + lane_row, tokens - 1);
        raw[pass] = load8(k0 + (long long)token * k_token);  // padding repeats a key: the maximum stays
    }

    // Values. The place of a key among the 32 that one product takes, see 'Layouts' in
    // fp8_attention.cu: four neighbouring bytes are keys c, c + 1, c + 8 and c + 9, which one thread
    // has.
    float factor[8];
#if SKIP
    bool values_finite = true;
#endif
#pragma unroll
    for (int c = 0; c < 8; c++) factor[c] = of_head[D + c];
#pragma unroll
    for (int turn = 0; turn < quads; turn++) {
        const int quad = turn * at_once + lane_row;
        const int first = quad / 8 * 32 + quad % 8 / 4 * 16 + quad % 4 * 2;
        float x[4][8];
        u32 ones = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int token = tile * TILE + first + i / 2 * 8 + i % 2;
            uint4 of_v = make_uint4(0, 0, 0, 0);
            if (token < tokens) {
                of_v = load8(v0 + (long long)token * v_token);
                ones |= (u32)ONE << (8 * i);
            }
            to_floats(of_v, x[i], IS_BF16);
#if SKIP
#pragma unroll
            for (int c = 0; c < 8; c++) values_finite = values_finite && fabsf(x[i][c]) <= 3.4e38f;
#endif
        }
        u32* to = v_image + (quad / 4 * (ROWS / 8) + part) * STRIDE + quad % 4;
#pragma unroll
        for (int c = 0; c < 8; c++) {
            float f = factor[c];
            to[c * 4] = to_e4m3x4(x[0][c] * f, x[1][c] * f, x[2][c] * f, x[3][c] * f);
        }
        if (part < 8)  // the row of ones, and seven of zeros
            v_image[(quad / 4 * (ROWS / 8) + D / 8) * STRIDE + part * 4 + quad % 4] =
                part ? 0 : ones;
    }

    // Keys.
    float mean[8], top = 1e-20f, norm = 0.0f;
#pragma unroll
    for (int c = 0; c < 8; c++) mean[c] = of_head[c];
#pragma unroll
    for (int pass = 0; pass < passes; pass++) {
        float x[8], square = 0.0f;
        to_floats(raw[pass], x, IS_BF16);
#pragma unroll
        for (int c = 0; c < 8; c++) {
            float y = x[c] - mean[c];
            top = fmaxf(top, fabsf(y));
            square = fmaf(y, y, square);
        }
#pragma unroll
        for (int step = 1; step < PARTS; step *= 2)
            square += __shfl_xor_sync(0xffffffffu, square, step);
        norm = fmaxf(norm, square);
    }
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
        norm = fmaxf(norm, __shfl_xor_sync(0xffffffffu, norm, step));
    }
    if (threadIdx.x % 32 == 0) {
        warp_max[threadIdx.x / 32] = top;
        warp_norm[threadIdx.x / 32] = norm;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < THREADS / 32; i++) {
        top = fmaxf(top, warp_max[i]);
        norm = fmaxf(norm, warp_norm[i]);
    }
    if (threadIdx.x == 0) atomicMax(k_norm + blockIdx.x, __float_as_uint(sqrtf(norm)));
    float k_scale = power_of_two_above(top / K_MAX);
    const float f = 1.0f / k_scale;
#pragma unroll
    for (int pass = 0; pass < passes; pass++) {
        int row = pass * at_once + lane_row;
        float y[8];
        to_floats(raw[pass], y, IS_BF16);
#pragma unroll
        for (int c = 0; c < 8; c++) y[c] = (y[c] - mean[c]) * f;
        uint2 packed;
        packed.x = to_e4m3x4(y[0], y[1], y[2], y[3]);
        packed.y = to_e4m3x4(y[4], y[5], y[6], y[7]);
        int at = ((part / 2) * (TILE / 8) + row / 8) * 128 + (row % 8) * 16 + (part % 2) * 8;
        *reinterpret_cast<uint2*>(out + at) = packed;
    }
    for (int i = threadIdx.x; i < V_BYTES / 16; i += THREADS) {
        const uint2* from = reinterpret_cast<const uint2*>(v_image + i / 8 * STRIDE + i % 8 * 4);
        reinterpret_cast<uint4*>(out + K_BYTES)[i] =
            make_uint4(from[0].x, from[0].y, from[1].x, from[1].y);
    }
    if (threadIdx.x == 0) *reinterpret_cast<float*>(out + K_BYTES + V_BYTES) = k_scale;
#if SKIP
    // Values that are not finite must come through whatever they weigh, so their tile is computed.
    float must = __syncthreads_or(!values_finite) ? 1.0f : 0.0f;
    if (threadIdx.x == 0) reinterpret_cast<float*>(out + K_BYTES + V_BYTES)[1] = must;
#endif
}
