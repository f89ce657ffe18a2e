// Attention in FP8 for NVIDIA Hopper (sm_90a), head dimension 64, no mask, no dropout.
//
// Why it exists: at head dimension 64 a BF16 kernel spends as long on exponentials as on products
// (16 a clock and SM against 64 x 64 x 2 FLOP each), so FP8 products alone gain little. Here the
// exponential costs no special-function unit at all:
//
//   S = Q K^T        FP8 in, FP16 accumulators: two scores a register
//   P = 2^(S - max)  e4m3 codes are piecewise linear in the logarithm: code = 8 * (log2 p + 7).
//                    One packed multiply-add rounds two scores to two codes (Schraudolph 1999, at
//                    the three mantissa bits that FP8 keeps anyway), one packed max cuts the tail,
//                    one byte permutation packs four codes.
//   O = P V          FP8 in, FP32 out. V carries a column of ones, so the sum of a row comes from
//                    the very codes that weigh its values, and their common bias cancels.
//
// Each tile's product goes to fresh accumulators and is added in FP32, because Hopper's FP8 units
// keep about 14 bits of a running sum (DeepSeek-V3 2024, 3.3.2). K is centred per channel, which
// softmax does not see and FP8 does (SageAttention, Zhang 2024).
//
// Layouts: pack() writes K and V tile by tile as wgmma reads them from shared memory (core matrices
// of 8 rows x 16 bytes), so one bulk copy moves a tile and no tensor map is needed. The registers
// that hold S after the first product are the registers that the second one reads as P; that
// permutes the keys of each 32, and pack() permutes V's to match.

#ifndef CONSUMERS
#define CONSUMERS 3       // warpgroups of 64 query rows each
#endif
#define CLUSTER 2         // blocks that share what they load
#define STAGES 6          // tiles of K and V in flight
#define D 64
#define TILE 128          // keys a tile
#define ROWS 72           // rows of V^T: 64 channels, one of ones, seven of zeros
#define K_BYTES (TILE * D)
#define V_BYTES (TILE * ROWS)
#define TILE_BYTES (K_BYTES + V_BYTES + 128)  // then the tile's K scale, padded
#define CHUNK 512         // tokens a block of stats()
#define Q_MAX 16.0f       // |q|, |k| after scaling: 64 * 16 * 32 stays inside FP16
#define K_MAX 32.0f
#define V_MAX 448.0f
#define TOP 120           // code of a row's largest score, 2^8; 127 would be NaN
#define ONE 0x38          // 1.0 in e4m3

__device__ __forceinline__ int tiles_of(int tokens) {  // even: the main loop takes two at a time
    return (tokens + 2 * TILE - 1) / (2 * TILE) * 2;
}

// Conversions -------------------------------------------------------------------------------------

__device__ __forceinline__ u32 half_twice(float x) {  // rounded down, in both halves
    u16 h;
    asm("cvt.rm.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return (u32)h * 0x10001u;
}

__device__ __forceinline__ float low_half(u32 x) { return to_float((u16)x, 0); }
__device__ __forceinline__ float high_half(u32 x) { return to_float((u16)(x >> 16), 0); }

__device__ __forceinline__ u32 max2(u32 a, u32 b) {
    u32 y;
    asm("max.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}

__device__ __forceinline__ u32 fma2(u32 a, u32 b, u32 c) {
    u32 y;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
    return y;
}

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
    const u16* k, const u16* v, float* partial, int tokens, int heads, int chunks,
    int k_batch, int k_token, int v_batch, int v_token, int is_bf16) {
    __shared__ float shared[2][32][D + 1];
    int head = blockIdx.y % heads, batch = blockIdx.y / heads;
    int part = threadIdx.x % 8, lane_row = threadIdx.x / 8;
    const u16* k0 = k + (long long)batch * k_batch + head * D + part * 8;
    const u16* v0 = v + (long long)batch * v_batch + head * D + part * 8;
    float sum[8] = {}, top[8] = {}, x[8];
    for (int i = 0; i < CHUNK; i += 32) {
        int token = blockIdx.x * CHUNK + i + lane_row;
        if (token >= tokens) break;
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
        for (int row = 0; row < 32; row++) {
            float y = shared[which][row][channel];
            total = which ? fmaxf(total, y) : total + y;
        }
        partial[((long long)blockIdx.y * chunks + blockIdx.x) * 2 * D + threadIdx.x] = total;
    }
}

// Pass two: quantize and lay out -------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(256) pack(
    const u16* q, const u16* k, const u16* v, const float* partial, u8* q8, float* q_scale,
    u8* tiles, float* v_scale, int tokens, int heads, int chunks, int padded,
    int q_batch, int q_token, int k_batch, int k_token, int v_batch, int v_token,
    int is_bf16, double scale) {
    __shared__ float mean_and_top[2 * D];
    __shared__ float warp_max[8];
    __shared__ __align__(16) u8 v_image[V_BYTES];
    int head = blockIdx.y % heads, batch = blockIdx.y / heads, tile = blockIdx.x;
    int part = threadIdx.x % 8, lane_row = threadIdx.x / 8;
    int tile_count = tiles_of(tokens);
    u8* out = tiles + ((long long)blockIdx.y * tile_count + tile) * TILE_BYTES;

    if (threadIdx.x < 2 * D) {
        int which = threadIdx.x / D;
        float total = 0.0f;
        const float* at = partial + (long long)blockIdx.y * chunks * 2 * D + threadIdx.x;
        for (int i = 0; i < chunks; i++) {
            float y = at[i * 2 * D];
            total = which ? fmaxf(total, y) : total + y;
        }
        mean_and_top[threadIdx.x] = which ? fmaxf(total, 1e-20f) : total / tokens;
        if (which && tile == 0) v_scale[blockIdx.y * D + threadIdx.x - D] =
            mean_and_top[threadIdx.x] / V_MAX;
    }
    for (int i = threadIdx.x; i < V_BYTES / 4; i += 256) reinterpret_cast<u32*>(v_image)[i] = 0;
    __syncthreads();

    float kx[4][8], x[8], top = 1e-20f;
#pragma unroll
    for (int pass = 0; pass < 4; pass++) {
        int row = pass * 32 + lane_row, token = tile * TILE + row;
        bool real = token < tokens;
        long long at = real ? token : tokens - 1;  // padding repeats a key: the maximum stays
        int channel = head * D + part * 8;

        load8(q + (long long)batch * q_batch + at * q_token + channel, x, is_bf16);
        float q_top = 1e-20f;
#pragma unroll
        for (int c = 0; c < 8; c++) q_top = fmaxf(q_top, fabsf(x[c]));
#pragma unroll
        for (int step = 1; step < 8; step *= 2)
            q_top = fmaxf(q_top, __shfl_xor_sync(0xffffffffu, q_top, step));
        // What one unit of q8.k8 is in codes, apart from K's scale. Rounded to FP16 before it is
        // used, so that the multiplier in the main loop is exact.
        float unit = q_top / Q_MAX * (float)scale * 1.4426950408889634f * 8.0f;
        u16 half;
        asm("cvt.rp.f16.f32 %0, %1;" : "=h"(half) : "f"(unit * 256.0f));
        unit = fmaxf(to_float(half, 0), 6e-5f) / 256.0f;
        float f = (float)scale * 1.4426950408889634f * 8.0f / unit;
        uint2 packed;
        packed.x = to_e4m3x4(x[0] * f, x[1] * f, x[2] * f, x[3] * f);
        packed.y = to_e4m3x4(x[4] * f, x[5] * f, x[6] * f, x[7] * f);
        long long q_row = (long long)blockIdx.y * padded + token;
        *reinterpret_cast<uint2*>(q8 + q_row * D + part * 8) = packed;
        if (part == 0) q_scale[q_row] = unit;

        load8(k + (long long)batch * k_batch + at * k_token + channel, kx[pass], is_bf16);
#pragma unroll
        for (int c = 0; c < 8; c++) {
            kx[pass][c] -= mean_and_top[part * 8 + c];
            top = fmaxf(top, fabsf(kx[pass][c]));
        }

        if (real) {
            load8(v + (long long)batch * v_batch + at * v_token + channel, x, is_bf16);
            // The place of this key among the 32 that one product takes; see 'Layouts' above.
            int column = row % 32, group = column / 8;
            int slot = row - column + 16 * (group / 2) + 4 * ((column % 8) / 2) + 2 * (group % 2)
                       + column % 2;
            int base = (slot / 16) * (ROWS / 8) * 128 + slot % 16;
#pragma unroll
            for (int c = 0; c < 8; c++) {
                float y = x[c] * (V_MAX / mean_and_top[D + part * 8 + c]);
                v_image[base + part * 128 + c * 16] = (u8)to_e4m3x4(y, 0.0f, 0.0f, 0.0f);
            }
            if (part == 0) v_image[base + (D / 8) * 128] = ONE;
        }
    }
#pragma unroll
    for (int step = 1; step < 32; step *= 2)
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
    if (threadIdx.x % 32 == 0) warp_max[threadIdx.x / 32] = top;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 8; i++) top = fmaxf(top, warp_max[i]);
    float k_scale = power_of_two_above(top / K_MAX);
#pragma unroll
    for (int pass = 0; pass < 4; pass++) {
        int row = pass * 32 + lane_row;
        float f = 1.0f / k_scale;
        float* y = kx[pass];
        uint2 packed;
        packed.x = to_e4m3x4(y[0] * f, y[1] * f, y[2] * f, y[3] * f);
        packed.y = to_e4m3x4(y[4] * f, y[5] * f, y[6] * f, y[7] * f);
        int at = ((part / 2) * (TILE / 8) + row / 8) * 128 + (row % 8) * 16 + (part % 2) * 8;
        *reinterpret_cast<uint2*>(out + at) = packed;
    }
    for (int i = threadIdx.x; i < V_BYTES / 16; i += 256)
        reinterpret_cast<uint4*>(out + K_BYTES)[i] = reinterpret_cast<uint4*>(v_image)[i];
    if (threadIdx.x == 0) *reinterpret_cast<float*>(out + K_BYTES + V_BYTES) = k_scale;
}

// A cluster's instructions, and products -----------------------------------------------------------

__device__ __forceinline__ void barrier_arrive(u32 barrier, int block) {  // of the cluster
    asm volatile(
        "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n}"
        ::"r"(barrier), "r"(block) : "memory");
}

__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;"
                 ::: "memory");
}

// To the same place in every block of the cluster, each of which counts the bytes at its barrier.
__device__ __forceinline__ void bulk_copy(u32 to, const void* from, int bytes, u32 barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1], %2, [%3], %4;"
        ::"r"(to), "l"(from), "r"(bytes), "r"(barrier), "h"((u16)((1 << CLUSTER) - 1)) : "memory");
}

// s (64 x 128, FP16) = [s +] a (64 x 32, registers) * b (32 x 128, shared memory)
__device__ __forceinline__ void product_qk(u32 (&s)[32], const u32* a, u64 b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k32.f16.e4m3.e4m3 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31},"
        "{%32,%33,%34,%35}, %36, p, 1, 1;\n}"
        : "+r"(s[0]), "+r"(s[1]), "+r"(s[2]), "+r"(s[3]), "+r"(s[4]), "+r"(s[5]), "+r"(s[6]),
          "+r"(s[7]), "+r"(s[8]), "+r"(s[9]), "+r"(s[10]), "+r"(s[11]), "+r"(s[12]), "+r"(s[13]),
          "+r"(s[14]), "+r"(s[15]), "+r"(s[16]), "+r"(s[17]), "+r"(s[18]), "+r"(s[19]),
          "+r"(s[20]), "+r"(s[21]), "+r"(s[22]), "+r"(s[23]), "+r"(s[24]), "+r"(s[25]),
          "+r"(s[26]), "+r"(s[27]), "+r"(s[28]), "+r"(s[29]), "+r"(s[30]), "+r"(s[31])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

// o (64 x 72, FP32) = [o +] a (64 x 32, registers) * b (32 x 72, shared memory)
__device__ __forceinline__ void product_pv(float (&o)[36], const u32* a, u64 b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %41, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n72k32.f32.e4m3.e4m3 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,"
        "%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35},"
        "{%36,%37,%38,%39}, %40, p, 1, 1;\n}"
        : "+f"(o[0]), "+f"(o[1]), "+f"(o[2]), "+f"(o[3]), "+f"(o[4]), "+f"(o[5]), "+f"(o[6]),
          "+f"(o[7]), "+f"(o[8]), "+f"(o[9]), "+f"(o[10]), "+f"(o[11]), "+f"(o[12]), "+f"(o[13]),
          "+f"(o[14]), "+f"(o[15]), "+f"(o[16]), "+f"(o[17]), "+f"(o[18]), "+f"(o[19]),
          "+f"(o[20]), "+f"(o[21]), "+f"(o[22]), "+f"(o[23]), "+f"(o[24]), "+f"(o[25]),
          "+f"(o[26]), "+f"(o[27]), "+f"(o[28]), "+f"(o[29]), "+f"(o[30]), "+f"(o[31]),
          "+f"(o[32]), "+f"(o[33]), "+f"(o[34]), "+f"(o[35])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

// The attention itself -----------------------------------------------------------------------------

struct Row {  // what one thread knows about one of its two query rows
    float unit;  // codes per unit of q8.k8, apart from K's scale
    float top;   // largest score so far, in codes
};

// Turns scores into packed e4m3 codes in place of a softmax's exponentials. `first` is 0 for the
// thread's upper row and 1 for its lower one. Returns what earlier sums must be multiplied by.
__device__ __forceinline__ float weigh(u32 (&s)[32], int first, Row& row, float k_scale) {
    u32 m = s[first];
#pragma unroll
    for (int i = 1; i < 16; i++) m = max2(m, s[2 * i + first]);
    float unit = row.unit * k_scale;
    float top = fmaxf(low_half(m), high_half(m)) * unit;
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    // 1024 is where FP16 counts in ones: adding it rounds to a whole code.
    u32 offset = half_twice(1024.0f + TOP - fmaxf(top, row.top));
    float now = 1024.0f + TOP - low_half(offset);
    float shrink = exp2f((row.top - now) * 0.125f);
    row.top = now;
    u32 factor = half_twice(unit);
#pragma unroll
    for (int i = 0; i < 16; i++) {
        u32& x = s[2 * i + first];
        x = max2(fma2(x, factor, offset), 0x64006400u);
    }
    return shrink;
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1)
    __launch_bounds__(128 * (CONSUMERS + 1), 1)
        attend(const u8* q8, const float* q_scale, const u8* tiles, const float* v_scale, u16* out,
               int tokens, int heads, int padded, int is_bf16) {
    extern __shared__ __align__(128) u8 memory[];
    __shared__ __align__(8) u64 barriers[2 * STAGES];
    int tile_count = tiles_of(tokens);
    u32 base = shared_address(memory), full = shared_address(barriers), empty = full + 8 * STAGES;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(full + 8 * i, 1);
            barrier_init(empty + 8 * i, CLUSTER * CONSUMERS * 4);  // every warp that reads it
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster_sync();

    int warpgroup = threadIdx.x / 128, thread = threadIdx.x % 128;
    if (warpgroup == CONSUMERS) {  // the producer: each block of the cluster loads its part
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (thread == 0) {
            const int bytes = TILE_BYTES / CLUSTER;
            int part = (blockIdx.x % CLUSTER) * bytes;
            const u8* from = tiles + (long long)blockIdx.y * tile_count * TILE_BYTES + part;
            for (int i = 0; i < tile_count; i++) {
                int stage = i % STAGES, turn = i / STAGES;
                if (turn) barrier_wait(empty + 8 * stage, (turn - 1) & 1);
                barrier_expect(full + 8 * stage, TILE_BYTES);
                bulk_copy(base + stage * TILE_BYTES + part, from + (long long)i * TILE_BYTES, bytes,
                          full + 8 * stage);
            }
        }
    } else {
        if (CONSUMERS == 3) asm volatile("setmaxnreg.inc.sync.aligned.u32 160;");
        else asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        int quad = thread % 4, lane = thread % 32;
        int row = (blockIdx.x * CONSUMERS + warpgroup) * 64 + (thread / 32) * 16 + lane / 4;
        u32 q[8];
        Row rows[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            long long at = (long long)blockIdx.y * padded + row + 8 * half;
            const u32* words = reinterpret_cast<const u32*>(q8 + at * D);
#pragma unroll
            for (int i = 0; i < 4; i++) q[2 * i + half] = words[4 * i + quad];
            rows[half].unit = q_scale[at];
            rows[half].top = -60000.0f;
        }

        float o[36], fresh[36];
        u32 s[32], p[16];
#pragma unroll
        for (int i = 0; i < 36; i++) o[i] = 0.0f;

        auto issue_scores = [&](int stage) {
            u64 b = descriptor(base + stage * TILE_BYTES, (TILE / 8) * 128, 128);
            product_qk(s, q, b, 0);
            product_qk(s, q + 4, b + ((2 * (TILE / 8) * 128) >> 4), 1);
            wgmma_commit();
        };
        auto issue_values = [&](int stage) {
            u64 b = descriptor(base + stage * TILE_BYTES + K_BYTES, (ROWS / 8) * 128, 128);
#pragma unroll
            for (int j = 0; j < 4; j++)
                product_pv(fresh, p + 4 * j, b + ((j * 2 * (ROWS / 8) * 128) >> 4), j > 0);
            wgmma_commit();
        };
        // `shrink` is what sums up to here must be multiplied by once this tile's come to them.
        float shrink[2], before[2] = {1.0f, 1.0f};
        auto weigh_scores = [&](int stage) {
            float k_scale;
            u32 at = base + stage * TILE_BYTES + K_BYTES + V_BYTES;
            asm volatile("ld.shared.f32 %0, [%1];" : "=f"(k_scale) : "r"(at));
            shrink[0] = weigh(s, 0, rows[0], k_scale);
            shrink[1] = weigh(s, 1, rows[1], k_scale);
        };
        auto pack_codes = [&]() {
#pragma unroll
            for (int j = 0; j < 16; j++) {
                int at = 8 * (j / 4) + 4 * ((j % 4) / 2) + j % 2;
                p[j] = __byte_perm(s[at], s[at + 2], 0x6420);
            }
        };

        barrier_wait(full, 0);
        wgmma_fence();
        issue_scores(0);
        wgmma_wait<0>();
        weigh_scores(0);
        pack_codes();
        for (int i = 0; i < tile_count; i++) {
            int stage = i % STAGES;
            // The last turn repeats its own scores: a branch would keep the compiler from
            // overlapping products and weighing.
            int after = min(i + 1, tile_count - 1), after_stage = after % STAGES;
            barrier_wait(full + 8 * after_stage, (after / STAGES) & 1);
            wgmma_fence();
            issue_scores(after_stage);
            issue_values(stage);
            wgmma_wait<1>();
            weigh_scores(after_stage);
            wgmma_wait<0>();
            if (lane < CLUSTER) barrier_arrive(empty + 8 * stage, lane);
#pragma unroll
            for (int j = 0; j < 36; j++) o[j] = fmaf(o[j], before[(j >> 1) & 1], fresh[j]);
            before[0] = shrink[0], before[1] = shrink[1];
            pack_codes();
        }

        const float* scales = v_scale + blockIdx.y * D;
        int head = blockIdx.y % heads, batch = blockIdx.y / heads;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = __shfl_sync(0xffffffffu, o[32 + 2 * half], lane & ~3);
            float inverse = 1.0f / sum;
            int at = row + 8 * half;
            if (at >= tokens) continue;
            u16* to = out + (((long long)batch * tokens + at) * heads + head) * D + 2 * quad;
#pragma unroll
            for (int g = 0; g < 8; g++) {
                float2 f = *reinterpret_cast<const float2*>(scales + 8 * g + 2 * quad);
                float low = o[4 * g + 2 * half] * inverse * f.x;
                float high = o[4 * g + 2 * half + 1] * inverse * f.y;
                *reinterpret_cast<u32*>(to + 8 * g) = from_floats(low, high, is_bf16);
            }
        }
    }
    cluster_sync();  // no block leaves while another may still write to it
}
