// What FP8 attention needs of rotary self-attention's three inputs, in one pass over each in place
// of three over query and key and one over value: the query normed, rotated and quantized; the key
// normed and rotated, with the sum of each channel; the largest |value| of each channel. After
// common.cu, rows.cu, fp8_attention_layout.cu and fp8_rotary.cu, and compiled as that is. COLUMNS is
// a multiple of D, and LANES * 8 as well.

#define CHUNK 128  // tokens a block
#define HEADS (COLUMNS / D)
#define WORKERS (THREADS / LANES)  // rows at once

// What is read through this pointer is read again in each turn of a loop: kept in registers from the
// first on, beside the sums, it would not fit.
__device__ __forceinline__ void read_anew(const uint4*& from) { asm volatile("" : "+l"(from)); }

// The block's sums (or maxima) of each channel, from those of each of its workers, to `partial` of
// fp8_pack.cu, in whose second half values' go.
__device__ __forceinline__ void write_totals(const float (&mine)[VECTORS][8], int is_value,
                                             float* partial, int chunk, int chunks, float* room) {
    const int lane = threadIdx.x % LANES, worker = threadIdx.x / LANES;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        __syncthreads();  // all have read what was there before
        float4* to = reinterpret_cast<float4*>(room + worker * LANES * 8 + lane * 8);
        to[0] = make_float4(mine[i][0], mine[i][1], mine[i][2], mine[i][3]);
        to[1] = make_float4(mine[i][4], mine[i][5], mine[i][6], mine[i][7]);
        __syncthreads();
        for (int at = threadIdx.x; at < LANES * 8; at += THREADS) {
            const int column = i * LANES * 8 + at;
            if (column >= COLUMNS) break;
            float total = room[at];
#pragma unroll
            for (int j = 1; j < WORKERS; j++) {
                float y = room[j * LANES * 8 + at];
                total = is_value ? fmaxf(total, y) : total + y;
            }
            const long long head = blockIdx.y * HEADS + column / D;
            partial[((head * chunks + chunk) * 2 + is_value) * D + column % D] = total;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, LANES == 32 ? 2 : 1) attention_inputs(
    const u16* __restrict__ q, const u16* __restrict__ k, const u16* __restrict__ v,
    const u16* __restrict__ q_weight, const u16* __restrict__ k_weight,
    const float* __restrict__ cosine, const float* __restrict__ sine, u16* __restrict__ k_out,
    u8* __restrict__ q8, float2* __restrict__ q_scale, float* __restrict__ partial,
    u32* __restrict__ k_norm, int tokens, int padded, int chunks, int q_batch, int q_token,
    int k_batch, int k_token, int v_batch, int v_token, double q_eps, double k_eps, double scale) {
    __shared__ float shared[THREADS / 32];
    __shared__ __align__(16) float room[THREADS * 8];
    const int lane = threadIdx.x % LANES, worker = threadIdx.x / LANES, batch = blockIdx.y;
    const int role = blockIdx.x % 3;  // q, k and v of a chunk side by side, the last chunk first
    const int chunk = chunks - 1 - blockIdx.x / 3;
    const int begin = chunk * CHUNK, end = min(tokens, begin + CHUNK);
    const int part = lane % PARTS, channel = lane * 8 % D;
    const float codes = (float)scale * 1.4426950408889634f * 8.0f;  // of one unit of q.k
    uint4 raw[VECTORS];
    if (role == 0) {
        const u16* from = q + (long long)batch * q_batch;
        const uint4* weight = reinterpret_cast<const uint4*>(q_weight) + lane;
        for (int token = begin + worker; token < end; token += WORKERS) {
            read_anew(weight);
            load_row(from + (long long)token * q_token, raw, lane);
            const long long table = (long long)token * D + channel;
            const Turn by_turn = turn(cosine + table, sine + table);
            const float by = inverse_rms(raw, (float)q_eps, shared);
#pragma unroll
            for (int i = 0; i < VECTORS; i++) {
                const int at = i * LANES + lane;
                // Whole warps go through the shuffles of `quantize_query`, past the end with zeros.
                const bool there = at * 8 < COLUMNS;
                const uint4 by_channel = there ? weight[i * LANES] : raw[i];
                const uint4 words = rotated(raw[i], by_channel, by, by_turn);
                float x[8];
                to_floats(words, x, IS_BF16);
                const Query found = quantize_query(x, codes);
                if (!there) continue;
                const long long row = (batch * HEADS + at * 8 / D) * (long long)padded + token;
                reinterpret_cast<uint2*>(q8 + row * D)[part] = found.codes;
                if (part == 0) q_scale[row] = found.scale;
            }
        }
        return;
    }
    float mine[VECTORS][8] = {};
    if (role == 1) {
        if (chunk == 0)
            for (int i = threadIdx.x; i < HEADS; i += THREADS) k_norm[batch * HEADS + i] = 0;
        const u16* from = k + (long long)batch * k_batch;
        const uint4* weight = reinterpret_cast<const uint4*>(k_weight) + lane;
        for (int token = begin + worker; token < end; token += WORKERS) {
            read_anew(weight);
            load_row(from + (long long)token * k_token, raw, lane);
            const long long table = (long long)token * D + channel;
            const Turn by_turn = turn(cosine + table, sine + table);
            const float by = inverse_rms(raw, (float)k_eps, shared);
            u16* to = k_out + ((long long)batch * tokens + token) * COLUMNS;
#pragma unroll
            for (int i = 0; i < VECTORS; i++) {
                const int at = i * LANES + lane;
                if (at * 8 >= COLUMNS) break;
                const uint4 words = rotated(raw[i], weight[i * LANES], by, by_turn);
                reinterpret_cast<uint4*>(to)[at] = words;
                float x[8];
                to_floats(words, x, IS_BF16);
#pragma unroll
                for (int j = 0; j < 8; j++) mine[i][j] += x[j];
            }
        }
    } else {
        const u16* from = v + (long long)batch * v_batch;
#pragma unroll 2
        for (int token = begin + worker; token < end; token += WORKERS) {
            load_row(from + (long long)token * v_token, raw, lane);
#pragma unroll
            for (int i = 0; i < VECTORS; i++) {
                float x[8];
                to_floats(raw[i], x, IS_BF16);
#pragma unroll
                for (int j = 0; j < 8; j++) mine[i][j] = fmaxf(mine[i][j], fabsf(x[j]));
            }
        }
    }
    write_totals(mine, role == 2, partial, chunk, chunks, room);
}
