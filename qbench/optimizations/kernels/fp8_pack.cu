// FP8 attention's first two passes: statistics of K and V, and all three inputs quantized. In this
// order: common.cu, fp8_attention_layout.cu, this file.

#define THREADS 256  // of a block of pack()
#define CHUNK 512      // tokens a block of stats()
#define PARTS (D / 8)  // threads that share a token, eight channels each
#define Q_MAX (D == 64 ? 16.0f : 15.0f)  // |q|, |k| after scaling: D * Q_MAX * 32 is inside FP16
#define K_MAX 32.0f
#define V_MAX 448.0f
#define ONE 0x38  // 1.0 in e4m3

__device__ __forceinline__ float power_of_two_above(float x) {
    u32 bits = __float_as_uint(x) & 0x7f800000u;
    return __uint_as_float(bits) == x ? x : __uint_as_float(bits + 0x00800000u);
}

// Eight neighbouring channels of one token and head, as floats.
__device__ __forceinline__ void load8(const u16* at, float* x, int is_bf16) {
    to_floats(*reinterpret_cast<const uint4*>(at), x, is_bf16);
}

// Pass one: per channel the sum of K and the largest |V| of a chunk of tokens ----------------------

extern "C" __global__ void __launch_bounds__(256) stats(
    const u16* k, const u16* v, float* partial, u32* k_norm, int tokens, int heads, int chunks,
    int k_batch, int k_token, int k_head, int v_batch, int v_token, int v_head, int is_bf16) {
    const int at_once = 256 / PARTS;
    __shared__ float shared[2][at_once][D + 1];
    int head = blockIdx.y % heads, batch = blockIdx.y / heads;
    int part = threadIdx.x % PARTS, lane_row = threadIdx.x / PARTS;
    const u16* k0 = k + (long long)batch * k_batch + (long long)head * k_head + part * 8;
    const u16* v0 = v + (long long)batch * v_batch + (long long)head * v_head + part * 8;
    float sum[8] = {}, top[8] = {}, x[8];
    if (blockIdx.x == 0 && threadIdx.x == 0) k_norm[blockIdx.y] = 0;
    const int end = min(tokens, (blockIdx.x + 1) * CHUNK);
#pragma unroll 4
    for (int token = blockIdx.x * CHUNK + lane_row; token < end; token += at_once) {
        load8(k0 + (long long)token * k_token, x, is_bf16);
#pragma unroll
        for (int c = 0; c < 8; c++) sum[c] += x[c];
        load8(v0 + (long long)token * v_token, x, is_bf16);
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
        partial[((long long)blockIdx.y * chunks + blockIdx.x) * 2 * D + threadIdx.x] = total;
    }
}

// Pass two: quantize and lay out -------------------------------------------------------------------

// Where a byte of V^T is put before it is copied out: four bytes more for each core matrix, or the
// threads of a warp would all write to the same banks.
__device__ __forceinline__ int v_place(int matrix, int row, int slot) {
    return matrix * 132 + row * 16 + slot;
}

extern "C" __global__ void __launch_bounds__(THREADS) pack(
    const u16* q, const u16* k, const u16* v, const float* partial, u8* q8, float2* q_scale,
    u8* tiles, float* v_scale, u32* k_norm, int q_tokens, int tokens, int heads, int chunks,
    int padded, int q_batch, int q_token, int q_head, int k_batch, int k_token, int k_head,
    int v_batch, int v_token, int v_head, int is_bf16, double scale) {
    const int at_once = THREADS / PARTS, passes = TILE / at_once;
    __shared__ float mean[D], v_factor[D];
    __shared__ float warp_max[THREADS / 32], warp_norm[THREADS / 32];
    __shared__ __align__(16) u8 v_image[V_BYTES / 128 * 132];
    int head = blockIdx.y % heads, batch = blockIdx.y / heads, tile = blockIdx.x;
    int part = threadIdx.x % PARTS, lane_row = threadIdx.x / PARTS;
    const float codes = (float)scale * 1.4426950408889634f * 8.0f;  // of one unit of q.k

    int tile_count = tiles_of(tokens);
    if (tile * TILE < q_tokens) {
        const u16* q0 = q + (long long)batch * q_batch + (long long)head * q_head + part * 8;
#pragma unroll
        for (int pass = 0; pass < passes; pass++) {
            int token = tile * TILE + pass * at_once + lane_row;
            float x[8];
            load8(q0 + (long long)min(token, q_tokens - 1) * q_token, x, is_bf16);
            float top = 1e-20f, norm = 0.0f;
#pragma unroll
            for (int c = 0; c < 8; c++) {
                top = fmaxf(top, fabsf(x[c]));
                norm = fmaf(x[c], x[c], norm);
            }
#pragma unroll
            for (int step = 1; step < PARTS; step *= 2) {
                top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
                norm += __shfl_xor_sync(0xffffffffu, norm, step);
            }
            // What one unit of q8.k8 is in codes, apart from K's scale. Rounded up to FP16's
            // mantissa before it is used, so that the multiplier in the main loop is exact.
            float unit = top / Q_MAX * codes;
            unit = __uint_as_float((__float_as_uint(unit) + 0x1fffu) & ~0x1fffu);
            unit = fmaxf(unit, 6e-5f / 256.0f);
            float f = codes / unit;
            uint2 packed;
            packed.x = to_e4m3x4(x[0] * f, x[1] * f, x[2] * f, x[3] * f);
            packed.y = to_e4m3x4(x[4] * f, x[5] * f, x[6] * f, x[7] * f);
            long long q_row = (long long)blockIdx.y * padded + token;
            *reinterpret_cast<uint2*>(q8 + q_row * D + part * 8) = packed;
            if (part == 0) q_scale[q_row] = make_float2(unit, sqrtf(norm) * codes);
        }
    }
    if (tile >= tile_count) return;
    u8* out = tiles + ((long long)blockIdx.y * tile_count + tile) * TILE_BYTES;
    if (threadIdx.x < 2 * D) {
        int which = threadIdx.x / D, channel = threadIdx.x % D;
        float total = 0.0f;
        const float* at = partial + (long long)blockIdx.y * chunks * 2 * D + threadIdx.x;
#pragma unroll 8
        for (int i = 0; i < chunks; i++) {
            float y = at[i * 2 * D];
            total = which ? fmaxf(total, y) : total + y;
        }
        if (which) {
            total = fmaxf(total, 1e-20f);
            v_factor[channel] = V_MAX / total;
            if (tile == 0) v_scale[blockIdx.y * D + channel] = total / V_MAX;
        } else {
            mean[channel] = total / tokens;
        }
    }
    for (int i = threadIdx.x; i < V_BYTES / 128 * 33; i += THREADS)
        reinterpret_cast<u32*>(v_image)[i] = 0;
    __syncthreads();

    const u16* k0 = k + (long long)batch * k_batch + (long long)head * k_head + part * 8;
    const u16* v0 = v + (long long)batch * v_batch + (long long)head * v_head + part * 8;
    float kx[passes][8], x[8], top = 1e-20f, norm = 0.0f;
#if SKIP
    bool values_finite = true;
#endif
#pragma unroll
    for (int pass = 0; pass < passes; pass++) {
        int row = pass * at_once + lane_row, token = tile * TILE + row;
        bool real = token < tokens;
        long long at = real ? token : tokens - 1;  // padding repeats a key: the maximum stays
        load8(k0 + at * k_token, kx[pass], is_bf16);
        float square = 0.0f;
#pragma unroll
        for (int c = 0; c < 8; c++) {
            float& y = kx[pass][c];
            y -= mean[part * 8 + c];
            top = fmaxf(top, fabsf(y));
            square = fmaf(y, y, square);
        }
#pragma unroll
        for (int step = 1; step < PARTS; step *= 2)
            square += __shfl_xor_sync(0xffffffffu, square, step);
        norm = fmaxf(norm, square);

        if (real) {
            load8(v0 + at * v_token, x, is_bf16);
            // The place of this key among the 32 that one product takes; see 'Layouts' above.
            int column = row % 32, group = column / 8;
            int slot = row - column + 16 * (group / 2) + 4 * ((column % 8) / 2) + 2 * (group % 2)
                       + column % 2;
            int base = slot / 16 * (ROWS / 8);
#pragma unroll
            for (int c = 0; c < 8; c++) {
                float y = x[c] * v_factor[part * 8 + c];
#if SKIP
                values_finite = values_finite && fabsf(x[c]) <= 3.4e38f;
#endif
                v_image[v_place(base + part, c, slot % 16)] =
                    (u8)to_e4m3x4(y, 0.0f, 0.0f, 0.0f);
            }
            if (part == 0) v_image[v_place(base + D / 8, 0, slot % 16)] = ONE;
        }
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
    if (threadIdx.x == 0) atomicMax(k_norm + blockIdx.y, __float_as_uint(sqrtf(norm)));
    float k_scale = power_of_two_above(top / K_MAX);
#pragma unroll
    for (int pass = 0; pass < passes; pass++) {
        int row = pass * at_once + lane_row;
        float f = 1.0f / k_scale;
        float* y = kx[pass];
        uint2 packed;
        packed.x = to_e4m3x4(y[0] * f, y[1] * f, y[2] * f, y[3] * f);
        packed.y = to_e4m3x4(y[4] * f, y[5] * f, y[6] * f, y[7] * f);
        int at = ((part / 2) * (TILE / 8) + row / 8) * 128 + (row % 8) * 16 + (part % 2) * 8;
        *reinterpret_cast<uint2*>(out + at) = packed;
    }
    for (int i = threadIdx.x; i < V_BYTES / 16; i += THREADS) {
        const u32* from = reinterpret_cast<const u32*>(v_image) + i / 8 * 33 + i % 8 * 4;
        reinterpret_cast<uint4*>(out + K_BYTES)[i] =
            make_uint4(from[0], from[1], from[2], from[3]);
    }
    if (threadIdx.x == 0) *reinterpret_cast<float*>(out + K_BYTES + V_BYTES) = k_scale;
#if SKIP
    // Values that are not finite must come through whatever they weigh, so their tile is computed.
    float must = __syncthreads_or(!values_finite) ? 1.0f : 0.0f;
    if (threadIdx.x == 0) reinterpret_cast<float*>(out + K_BYTES + V_BYTES)[1] = must;
#endif
}

