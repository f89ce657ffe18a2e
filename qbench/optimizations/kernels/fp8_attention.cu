// Attention in FP8 for NVIDIA Hopper (sm_90a), heads of 64 or 128 channels (D), no mask, no dropout.
//
// Why it exists: at head dimension 64 a BF16 kernel spends as long on exponentials as on products
// (16 a clock and SM against 64 x 64 x 2 FLOP each), and at 128 half as long, so FP8 products alone
// gain little. Here the exponential costs no special-function unit at all:
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
// Layouts: fp8_pack.cu writes K and V tile by tile as wgmma reads them from shared memory (core matrices
// of 8 rows x 16 bytes), so one bulk copy moves a tile and no tensor map is needed. The registers
// that hold S after the first product are the registers that the second one reads as P; that
// permutes the keys of each 32, and fp8_pack.cu permutes V's to match.
//
// A thread holds a row's sums twice, fresh and added up: 36 registers each at 64 channels, 68 at
// 128, where there is room for two warpgroups of queries instead of three. With tiles of 192 keys,
// which add them up less often, those two keep the tensor cores as busy as products alone would.
//
// SKIP makes another kernel of it, which leaves out tiles that cannot matter: where all scores of a
// warpgroup's 64 queries lie more than `depth` codes below their rows' largest so far, neither P nor
// P V is computed (BLASST, arXiv 2512.12087; the online filter of SpargeAttn, Zhang 2025). Q K^T of
// every tile is, and every tile is loaded, for the other warpgroups of the cluster.

#ifndef SKIP
#define SKIP 0
#endif
#define CONSUMERS (D == 64 ? 3 : 2)  // warpgroups of 64 query rows each
#define STAGES (D == 64 ? 6 : 4)     // tiles of K and V in flight
#define CLUSTER 2                    // blocks that share what they load
#define TOP 120           // code of a row's largest score, 2^8; 127 would be NaN
#define LOUDEST 56000.0f  // codes; a score of 4,850. With the rounding of q and k inside FP16

// Two halves in a register ------------------------------------------------------------------------

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

#if D == 64
// s (64 x 128, FP16) = [s +] a (64 x 32, registers) * b (32 x 128, shared memory)
__device__ __forceinline__ void product_qk(u32 (&s)[32], const u32* a, u64 b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k32.f16.e4m3.e4m3 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,"
        "%22,%23,%24,%25,%26,%27,%28,%29,%30,%31},"
        "{%32,%33,%34,%35}, %36, p, 1, 1;\n}"
        : "+r"(s[0]), "+r"(s[1]), "+r"(s[2]), "+r"(s[3]), "+r"(s[4]), "+r"(s[5]), "+r"(s[6]),
          "+r"(s[7]), "+r"(s[8]), "+r"(s[9]), "+r"(s[10]), "+r"(s[11]), "+r"(s[12]),
          "+r"(s[13]), "+r"(s[14]), "+r"(s[15]), "+r"(s[16]), "+r"(s[17]), "+r"(s[18]),
          "+r"(s[19]), "+r"(s[20]), "+r"(s[21]), "+r"(s[22]), "+r"(s[23]), "+r"(s[24]),
          "+r"(s[25]), "+r"(s[26]), "+r"(s[27]), "+r"(s[28]), "+r"(s[29]), "+r"(s[30]),
          "+r"(s[31])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}
#else
// s (64 x 192, FP16) = [s +] a (64 x 32, registers) * b (32 x 192, shared memory)
__device__ __forceinline__ void product_qk(u32 (&s)[48], const u32* a, u64 b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %53, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n192k32.f16.e4m3.e4m3 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,"
        "%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,"
        "%42,%43,%44,%45,%46,%47},"
        "{%48,%49,%50,%51}, %52, p, 1, 1;\n}"
        : "+r"(s[0]), "+r"(s[1]), "+r"(s[2]), "+r"(s[3]), "+r"(s[4]), "+r"(s[5]), "+r"(s[6]),
          "+r"(s[7]), "+r"(s[8]), "+r"(s[9]), "+r"(s[10]), "+r"(s[11]), "+r"(s[12]),
          "+r"(s[13]), "+r"(s[14]), "+r"(s[15]), "+r"(s[16]), "+r"(s[17]), "+r"(s[18]),
          "+r"(s[19]), "+r"(s[20]), "+r"(s[21]), "+r"(s[22]), "+r"(s[23]), "+r"(s[24]),
          "+r"(s[25]), "+r"(s[26]), "+r"(s[27]), "+r"(s[28]), "+r"(s[29]), "+r"(s[30]),
          "+r"(s[31]), "+r"(s[32]), "+r"(s[33]), "+r"(s[34]), "+r"(s[35]), "+r"(s[36]),
          "+r"(s[37]), "+r"(s[38]), "+r"(s[39]), "+r"(s[40]), "+r"(s[41]), "+r"(s[42]),
          "+r"(s[43]), "+r"(s[44]), "+r"(s[45]), "+r"(s[46]), "+r"(s[47])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}
#endif

#if D == 64
// o (64 x 72, FP32) = [o +] a (64 x 32, registers) * b (32 x 72, shared memory)
__device__ __forceinline__ void product_pv(float (&o)[36], const u32* a, u64 b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %41, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n72k32.f32.e4m3.e4m3 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,"
        "%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35},"
        "{%36,%37,%38,%39}, %40, p, 1, 1;\n}"
        : "+f"(o[0]), "+f"(o[1]), "+f"(o[2]), "+f"(o[3]), "+f"(o[4]), "+f"(o[5]), "+f"(o[6]),
          "+f"(o[7]), "+f"(o[8]), "+f"(o[9]), "+f"(o[10]), "+f"(o[11]), "+f"(o[12]),
          "+f"(o[13]), "+f"(o[14]), "+f"(o[15]), "+f"(o[16]), "+f"(o[17]), "+f"(o[18]),
          "+f"(o[19]), "+f"(o[20]), "+f"(o[21]), "+f"(o[22]), "+f"(o[23]), "+f"(o[24]),
          "+f"(o[25]), "+f"(o[26]), "+f"(o[27]), "+f"(o[28]), "+f"(o[29]), "+f"(o[30]),
          "+f"(o[31]), "+f"(o[32]), "+f"(o[33]), "+f"(o[34]), "+f"(o[35])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}
#else
// o (64 x 136, FP32) = [o +] a (64 x 32, registers) * b (32 x 136, shared memory)
__device__ __forceinline__ void product_pv(float (&o)[68], const u32* a, u64 b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %73, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n136k32.f32.e4m3.e4m3 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,"
        "%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,"
        "%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,"
        "%62,%63,%64,%65,%66,%67},"
        "{%68,%69,%70,%71}, %72, p, 1, 1;\n}"
        : "+f"(o[0]), "+f"(o[1]), "+f"(o[2]), "+f"(o[3]), "+f"(o[4]), "+f"(o[5]), "+f"(o[6]),
          "+f"(o[7]), "+f"(o[8]), "+f"(o[9]), "+f"(o[10]), "+f"(o[11]), "+f"(o[12]),
          "+f"(o[13]), "+f"(o[14]), "+f"(o[15]), "+f"(o[16]), "+f"(o[17]), "+f"(o[18]),
          "+f"(o[19]), "+f"(o[20]), "+f"(o[21]), "+f"(o[22]), "+f"(o[23]), "+f"(o[24]),
          "+f"(o[25]), "+f"(o[26]), "+f"(o[27]), "+f"(o[28]), "+f"(o[29]), "+f"(o[30]),
          "+f"(o[31]), "+f"(o[32]), "+f"(o[33]), "+f"(o[34]), "+f"(o[35]), "+f"(o[36]),
          "+f"(o[37]), "+f"(o[38]), "+f"(o[39]), "+f"(o[40]), "+f"(o[41]), "+f"(o[42]),
          "+f"(o[43]), "+f"(o[44]), "+f"(o[45]), "+f"(o[46]), "+f"(o[47]), "+f"(o[48]),
          "+f"(o[49]), "+f"(o[50]), "+f"(o[51]), "+f"(o[52]), "+f"(o[53]), "+f"(o[54]),
          "+f"(o[55]), "+f"(o[56]), "+f"(o[57]), "+f"(o[58]), "+f"(o[59]), "+f"(o[60]),
          "+f"(o[61]), "+f"(o[62]), "+f"(o[63]), "+f"(o[64]), "+f"(o[65]), "+f"(o[66]),
          "+f"(o[67])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}
#endif

// The attention itself -----------------------------------------------------------------------------

struct Row {  // what one thread knows about one of its two query rows
    float unit;  // codes per unit of q8.k8, apart from K's scale
    float top;   // largest score so far, in codes
};

// A row's largest score in this tile, in codes. `first` is 0 for the thread's upper row and 1 for its
// lower one.
__device__ __forceinline__ float highest(const u32 (&s)[TILE / 4], int first, float unit) {
    u32 m = s[first];
#pragma unroll
    for (int i = 1; i < TILE / 8; i++) m = max2(m, s[2 * i + first]);
    float top = fmaxf(low_half(m), high_half(m)) * unit;
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    return fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
}

// Turns scores, of which `top` is the largest, into packed e4m3 codes in place of a softmax's
// exponentials. Returns what earlier sums must be multiplied by.
__device__ __forceinline__ float weigh(u32 (&s)[TILE / 4], int first, Row& row, float unit,
                                       float top) {
    // 1024 is where FP16 counts in ones: adding it rounds to a whole code.
    u32 offset = half_twice(1024.0f + TOP - fmaxf(top, row.top));
    float now = 1024.0f + TOP - low_half(offset);
    float shrink = exp2f((row.top - now) * 0.125f);
    row.top = now;
    u32 factor = half_twice(unit);
#pragma unroll
    for (int i = 0; i < TILE / 8; i++) {
        u32& x = s[2 * i + first];
        x = max2(fma2(x, factor, offset), 0x64006400u);
    }
    return shrink;
}

#if SKIP
// Whether it is so for any thread of this warpgroup, all of which wait for each other.
__device__ __forceinline__ int any_of_warpgroup(int so, int warpgroup) {
    int any;
    asm volatile(
        "{\n.reg .pred p, q;\nsetp.ne.b32 p, %1, 0;\n"
        "barrier.cta.red.or.pred q, %2, 128, p;\nselp.b32 %0, 1, 0, q;\n}"
        : "=r"(any) : "r"(so), "r"(warpgroup + 1) : "memory");
    return __shfl_sync(0xffffffffu, any, 0);  // which the compiler knows for the same in a warp
}
#endif

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1)
    __launch_bounds__(128 * (CONSUMERS + 1), 1)
        attend(const u8* q8, const float2* q_scale, const u8* tiles, const float* v_scale,
               const float* k_norm, u16* out, int q_tokens, int tokens, int heads, int padded,
               int is_bf16
#if SKIP
               , double depth_codes, u64* computed
#endif
        ) {
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
        u32 q[D / 8];
        Row rows[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            long long at = (long long)blockIdx.y * padded + row + 8 * half;
            const u32* words = reinterpret_cast<const u32*>(q8 + at * D);
#pragma unroll
            for (int i = 0; i < D / 16; i++) q[2 * i + half] = words[4 * i + quad];
            float2 scale = q_scale[at];
            // No score of the row can be louder (Cauchy-Schwarz). A row that might pass what FP16
            // holds is computed at scores scaled down to it: near that, softmax is a maximum.
            float bound = scale.y * k_norm[blockIdx.y];
            rows[half].unit = scale.x;
            if (!(bound <= LOUDEST)) {
                float less = bound < __int_as_float(0x7f800000) ? scale.x * (LOUDEST / bound) : __int_as_float(0x7fffffff);
                rows[half].unit = __uint_as_float(__float_as_uint(less) & ~0x1fffu);
            }
            rows[half].top = -60000.0f;
        }

        float o[ROWS / 2], fresh[ROWS / 2];
        u32 s[TILE / 4];
#pragma unroll
        for (int i = 0; i < ROWS / 2; i++) o[i] = 0.0f;

        auto issue_scores = [&](int stage) {
            u64 b = descriptor(base + stage * TILE_BYTES, (TILE / 8) * 128, 128);
#pragma unroll
            for (int j = 0; j < D / 32; j++)
                product_qk(s, q + 4 * j, b + ((j * 2 * (TILE / 8) * 128) >> 4), j > 0);
            wgmma_commit();
        };
        auto issue_values = [&](int stage, const u32* p) {
            u64 b = descriptor(base + stage * TILE_BYTES + K_BYTES, (ROWS / 8) * 128, 128);
#pragma unroll
            for (int j = 0; j < TILE / 32; j++)
                product_pv(fresh, p + 4 * j, b + ((j * 2 * (ROWS / 8) * 128) >> 4), j > 0);
            wgmma_commit();
        };
        // `shrink` is what sums up to here must be multiplied by once this tile's come to them.
        float shrink[2], before[2] = {1.0f, 1.0f};
#if SKIP
        float depth;  // volatile: or the compiler converts it anew in every turn
        asm volatile("cvt.rn.f32.f64 %0, %1;" : "=f"(depth) : "d"(depth_codes));
        float units[2], tops[2];
        // Whether this thread has a score that matters, or the tile a value that is NaN or infinite.
        auto look = [&](int stage) {
            float k_scale, must;
            u32 at = base + stage * TILE_BYTES + K_BYTES + V_BYTES;
            asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(k_scale), "=f"(must) : "r"(at));
            bool quiet = must == 0.0f;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                units[half] = rows[half].unit * k_scale;
                tops[half] = highest(s, half, units[half]);
                quiet = quiet && tops[half] < rows[half].top - depth;  // never where one is NaN
            }
            return !quiet;
        };
        auto weigh_scores = [&]() {
#pragma unroll
            for (int half = 0; half < 2; half++)
                shrink[half] = weigh(s, half, rows[half], units[half], tops[half]);
        };
#else
        auto weigh_scores = [&](int stage) {
            float k_scale;
            u32 at = base + stage * TILE_BYTES + K_BYTES + V_BYTES;
            asm volatile("ld.shared.f32 %0, [%1];" : "=f"(k_scale) : "r"(at));
            float unit = rows[0].unit * k_scale;
            shrink[0] = weigh(s, 0, rows[0], unit, highest(s, 0, unit));
            unit = rows[1].unit * k_scale;
            shrink[1] = weigh(s, 1, rows[1], unit, highest(s, 1, unit));
        };
#endif
        auto pack_codes = [&](u32* p) {
#pragma unroll
            for (int j = 0; j < TILE / 8; j++) {
                int at = 8 * (j / 4) + 4 * ((j % 4) / 2) + j % 2;
                p[j] = __byte_perm(s[at], s[at + 2], 0x6420);
            }
        };
        auto add_fresh = [&]() {
#pragma unroll
            for (int j = 0; j < ROWS / 2; j++) o[j] = fmaf(o[j], before[(j >> 1) & 1], fresh[j]);
            before[0] = shrink[0], before[1] = shrink[1];
        };

        barrier_wait(full, 0);
        wgmma_fence();
        issue_scores(0);
        wgmma_wait<0>();
#if SKIP
        look(0);  // nothing is below the largest of no scores
        weigh_scores();
#else
        weigh_scores(0);
#endif
        u32 p[TILE / 8];
        pack_codes(p);
#if SKIP
        // A tile that is left out changes no row's largest score, so weighing it beside the product
        // before, as is done with every tile there, does no harm and saves a branch.
        const int real = (tokens + TILE - 1) / TILE;
        int keep = 1, kept = 0;
        for (int i = 0; i < tile_count; i++) {
            int stage = i % STAGES;
            int after = min(i + 1, tile_count - 1), after_stage = after % STAGES;
            barrier_wait(full + 8 * after_stage, (after / STAGES) & 1);
            if (keep) {
                kept += i < real;
                wgmma_fence();
                issue_scores(after_stage);
                issue_values(stage, p);
                wgmma_wait<1>();
                int matters = look(after_stage);
                weigh_scores();
                wgmma_wait<0>();
                __syncwarp();  // lanes have read the tile's scale before two of them give it back
                if (lane < CLUSTER) barrier_arrive(empty + 8 * stage, lane);
                add_fresh();
                keep = any_of_warpgroup(matters, warpgroup);
                pack_codes(p);
            } else {
                wgmma_fence();
                issue_scores(after_stage);
                wgmma_wait<0>();
                __syncwarp();
                if (lane < CLUSTER) barrier_arrive(empty + 8 * stage, lane);
                keep = any_of_warpgroup(look(after_stage), warpgroup);
                if (keep) {
                    weigh_scores();
                    before[0] = shrink[0], before[1] = shrink[1];
                    pack_codes(p);
                }
            }
        }
        if (thread == 0 && row < q_tokens) atomicAdd(computed, (u64)kept);
#else
        for (int i = 0; i < tile_count; i++) {
            int stage = i % STAGES;
            // The last turn repeats its own scores: a branch would keep the compiler from
            // overlapping products and weighing.
            int after = min(i + 1, tile_count - 1), after_stage = after % STAGES;
            barrier_wait(full + 8 * after_stage, (after / STAGES) & 1);
            wgmma_fence();
            issue_scores(after_stage);
            issue_values(stage, p);
            wgmma_wait<1>();
            weigh_scores(after_stage);
            wgmma_wait<0>();
            __syncwarp();
            if (lane < CLUSTER) barrier_arrive(empty + 8 * stage, lane);
            add_fresh();
            pack_codes(p);
        }
#endif

        const float* scales = v_scale + blockIdx.y * D;
        int head = blockIdx.y % heads, batch = blockIdx.y / heads;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = __shfl_sync(0xffffffffu, o[D / 2 + 2 * half], lane & ~3);
            float inverse = 1.0f / sum;
            int at = row + 8 * half;
            if (at >= q_tokens) continue;
            u16* to = out + (((long long)batch * q_tokens + at) * heads + head) * D + 2 * quad;
#pragma unroll
            for (int g = 0; g < D / 8; g++) {
                float2 f = *reinterpret_cast<const float2*>(scales + 8 * g + 2 * quad);
                float low = o[4 * g + 2 * half] * inverse * f.x;
                float high = o[4 * g + 2 * half + 1] * inverse * f.y;
                *reinterpret_cast<u32*>(to + 8 * g) = from_floats(low, high, is_bf16);
            }
        }
    }
    cluster_sync();  // no block leaves while another may still write to it
}
