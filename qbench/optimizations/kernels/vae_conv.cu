// The decode of CogVideoX's VAE for NVIDIA Hopper (sm_90a), in BF16 or FP16: causal convolutions
// and group norms that latents scale and shift.
//
// Activations are blocked by eight channels, (batch, channels / 8, frames, height, width, 8), from
// the first convolution to the last; such a block is called a plane here. Eight channels are 16 bytes, and eight neighbours
// of a row are the 128 bytes that wgmma calls a core matrix, wherever the row begins. So one copy
// brings a tile with the pixels around it, and each of a kernel's taps is a GEMM whose operand begins
// a few pixels further on in the same shared memory: cuDNN's implicit GEMM gathers every tap's input
// anew.
//
// A block takes 16 x 16 pixels of a frame and WIDE output channels (a define: 128, or 8 for the last
// convolution), and goes on to the next tile while its stores are under way. Two warpgroups
// multiply, one loads.

#define TILE 16          // pixels, along rows and columns
#define CHUNK 64         // input channels at once
#define CHANNELS 1024    // of the output, at most
#define A_STAGES 2       // tiles with their borders
#define B_STAGES 6       // weights of a tap, 64 input channels, WIDE output channels
#define A_BYTES ((TILE + 2) * (TILE + 2) * CHUNK * 2)
#define B_BYTES (WIDE * CHUNK * 2)
#if IS_BF16
#define KIND "bf16"
#else
#define KIND "f16"
#endif

__device__ __forceinline__ uint4 from_eight(const float* x) {
    return make_uint4(from_floats(x[0], x[1], IS_BF16), from_floats(x[2], x[3], IS_BF16),
                      from_floats(x[4], x[5], IS_BF16), from_floats(x[6], x[7], IS_BF16));
}

// Convolutions -------------------------------------------------------------------------------------

// d (64 x WIDE, FP32) = [d +] a (64 x 16) * b (16 x WIDE), both in shared memory
#if WIDE == 128
__device__ __forceinline__ void product(float (&d)[64], u64 a, u64 b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." KIND "." KIND " {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,"
        "%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,"
        "%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,"
        "%60,%61,%62,%63"
        "}, %64, %65, p, 1, 1, 0, 0;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
          "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
          "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),
          "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]),
          "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
          "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]),
          "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]),
          "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]),
          "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
          "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]),
          "+f"(d[62]), "+f"(d[63])
        : "l"(a), "l"(b), "r"(add));
}
#else
__device__ __forceinline__ void product(float (&d)[4], u64 a, u64 b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32." KIND "." KIND " {"
        "%0,%1,%2,%3"
        "}, %4, %5, p, 1, 1, 0, 0;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "l"(a), "l"(b), "r"(add));
}
#endif

__device__ __forceinline__ void arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void copy(u32 to, const void* from, int bytes, u32 barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
        ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}

// A box of the tensor that `map` describes; what lies outside of it arrives as zeros.
__device__ __forceinline__ void copy_box(
    u32 to, const void* map, int x, int row, int frame, int plane, int batch, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3, %4, %5, %6}], [%7];"
        ::"r"(to), "l"(map), "r"(x), "r"(row), "r"(frame), "r"(plane), "r"(batch), "r"(barrier)
        : "memory");
}

// The map was written by a copy from the host, not by this kernel's argument.
__device__ __forceinline__ void acquire_map(const void* map) {
    asm volatile("fence.proxy.tensormap::generic.acquire.sys [%0], 128;" ::"l"(map) : "memory");
}

struct Tile {
    int n, down, right, column, row, frame, batch;
};

// Tiles that see the same input come one after the other: it is in the L2 cache then.
__device__ __forceinline__ Tile tile_of(
    int i, int of_n, int grow, int columns, int rows, int frames) {
    Tile tile;
    tile.n = i % of_n, i /= of_n;
    tile.right = i % grow, i /= grow;
    tile.down = i % grow, i /= grow;
    tile.frame = i % frames, i /= frames;
    tile.column = i % columns * TILE, i /= columns;
    tile.row = i % rows * TILE, tile.batch = i / rows;
    return tile;
}

// `taps` along rows and columns and `taps_t` frames, of which the last is the output's own. Before
// the first frame come those of `before`, or where `has_before` is 0 the first one again. Frames
// are written `copies` (1 or 2) times, but for the first where `once`. `residual` is added where
// `has_residual`.
//
// `border` rows above and below those that are written come with the input, as they do where a frame
// lies on several GPUs; without them there are zeros.
//
// Where `grow` is 2 this is a convolution of 3 x 3 taps of the input enlarged by the nearest: what
// an output pixel sees of it are 2 x 2 of the input's, so each of the four kinds of pixels (`down`,
// `right`) has weights of its own for 2 x 2 taps, and no enlarged input exists.
extern "C" __global__ void __launch_bounds__(384, 1) convolve(
    const u8* map, const u8* before_map, const u8* weights, const u16* bias, const u16* residual,
    u16* out, int batch, int chunks, int planes_out, int frames, int height, int width, int taps_t,
    int taps, int grow, int copies, int once, int out_frames, int has_before, int has_residual,
    int border) {
    extern __shared__ __align__(128) u8 memory[];
    __shared__ __align__(8) u64 barriers[2 * (A_STAGES + B_STAGES)];
    __shared__ u32 bias_words[CHANNELS / 2];
    const u32 a_at = shared_address(memory), b_at = a_at + A_STAGES * A_BYTES;
    const u32 a_full = shared_address(barriers), a_empty = a_full + 8 * A_STAGES;
    const u32 b_full = a_empty + 8 * A_STAGES, b_empty = b_full + 8 * B_STAGES;
    if (threadIdx.x == 0) {
        for (int i = 0; i < A_STAGES + B_STAGES; i++) {
            bool a = i < A_STAGES;
            barrier_init((a ? a_full : b_full) + 8 * (a ? i : i - A_STAGES), 1);
            barrier_init((a ? a_empty : b_empty) + 8 * (a ? i : i - A_STAGES), 8);  // warps
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    for (int i = threadIdx.x; i < planes_out * 4; i += 384)
        bias_words[i] = reinterpret_cast<const u32*>(bias)[i];
    __syncthreads();

    const int of_n = (planes_out * 8 + WIDE - 1) / WIDE, side = TILE + taps - 1;
    const int columns = (width + TILE - 1) / TILE, rows = (height + TILE - 1) / TILE;
    const int tiles = of_n * grow * grow * columns * rows * frames * batch;
    const int plane_bytes = side * side * 16;
    const int warpgroup = threadIdx.x / 128, thread = threadIdx.x % 128;

    if (warpgroup == 2) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (thread == 0) {  // tiles of the input
            acquire_map(map);
            if (has_before) acquire_map(before_map);
            int turn = 0;
            for (int i = blockIdx.x; i < tiles; i += gridDim.x) {
                Tile tile = tile_of(i, of_n, grow, columns, rows, frames);
                int above = grow > 1 ? 1 - tile.down : taps / 2;
                int left = grow > 1 ? 1 - tile.right : taps / 2;
                for (int t = 0; t < taps_t; t++) {
                    int frame = tile.frame + t - taps_t + 1;
                    bool earlier = frame < 0 && has_before;
                    const u8* from = earlier ? before_map : map;
                    frame = earlier ? frame + taps_t - 1 : max(frame, 0);
                    for (int chunk = 0; chunk < chunks; chunk++, turn++) {
                        int stage = turn % A_STAGES, round = turn / A_STAGES;
                        if (round) barrier_wait(a_empty + 8 * stage, (round - 1) & 1);
                        barrier_expect(a_full + 8 * stage, plane_bytes * (CHUNK / 8));
                        copy_box(a_at + stage * A_BYTES, from, (tile.column - left) * 8,
                                 tile.row - above + border, frame, chunk * (CHUNK / 8), tile.batch,
                                 a_full + 8 * stage);
                    }
                }
            }
        } else if (thread == 32) {  // weights
            int turn = 0, count = taps_t * chunks * taps * taps, kinds = of_n * grow * grow;
            for (int i = blockIdx.x; i < tiles; i += gridDim.x) {
                const u8* from = weights + (long long)(i % kinds) * B_BYTES;
                for (int k = 0; k < count; k++, turn++) {
                    int stage = turn % B_STAGES, round = turn / B_STAGES;
                    if (round) barrier_wait(b_empty + 8 * stage, (round - 1) & 1);
                    barrier_expect(b_full + 8 * stage, B_BYTES);
                    copy(b_at + stage * B_BYTES, from + (long long)k * kinds * B_BYTES, B_BYTES,
                         b_full + 8 * stage);
                }
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        const int warp = thread / 32, lane = thread % 32, quad = lane % 4;
        int a_turn = 0, b_turn = 0;
        for (int i = blockIdx.x; i < tiles; i += gridDim.x) {
            Tile tile = tile_of(i, of_n, grow, columns, rows, frames);
            float d[2][WIDE / 2];
            int add = 0;
            for (int chunk = 0; chunk < taps_t * chunks; chunk++, a_turn++) {
                int a_stage = a_turn % A_STAGES;
                barrier_wait(a_full + 8 * a_stage, (a_turn / A_STAGES) & 1);
                u32 a0 = a_at + a_stage * A_BYTES + 8 * warpgroup * side * 16;
                for (int tap = 0; tap < taps * taps; tap++, b_turn++) {
                    int b_stage = b_turn % B_STAGES;
                    barrier_wait(b_full + 8 * b_stage, (b_turn / B_STAGES) & 1);
                    u32 seen = (tap / taps * side + tap % taps) * 16;
                    u64 a = descriptor(a0 + seen, plane_bytes, side * 16);
                    u64 b = descriptor(b_at + b_stage * B_BYTES, (WIDE / 8) * 128, 128);
                    wgmma_fence();
#pragma unroll
                    for (int k = 0; k < CHUNK / 16; k++) {
                        u64 ak = a + (u64)((k * 2 * plane_bytes) >> 4);
                        u64 bk = b + (u64)((k * 2 * (WIDE / 8) * 128) >> 4);
                        product(d[0], ak, bk, add);
                        product(d[1], ak + 8, bk, add);  // eight pixels further
                        add = 1;
                    }
                    wgmma_commit();
                    wgmma_wait<1>();  // those of the tap before are done with their operands
                    if (lane == 0 && chunk + tap > 0) {
                        arrive(b_empty + 8 * ((b_turn - 1) % B_STAGES));
                        if (tap == 0) arrive(a_empty + 8 * ((a_turn - 1) % A_STAGES));
                    }
                }
            }
            wgmma_wait<0>();
            if (lane == 0) {
                arrive(b_empty + 8 * ((b_turn - 1) % B_STAGES));
                arrive(a_empty + 8 * ((a_turn - 1) % A_STAGES));
            }

            // What every output has: the first frame to write to, and whether there is a second.
            const bool apart = once && copies > 1;
            const int first = tile.frame * copies - (apart && tile.frame ? copies - 1 : 0);
            const bool again = copies > 1 && !(apart && tile.frame == 0);
            const long long frame_words = (long long)height * grow * width * grow * 4;
            const long long plane_words = frame_words * out_frames;
            const int planes = planes_out - tile.n * (WIDE / 8);
            const long long plane = (long long)tile.batch * planes_out + tile.n * (WIDE / 8);
            const long long start = plane * plane_words + first * frame_words + quad;
            const u32* plus = bias_words + tile.n * (WIDE / 2) + quad;
#pragma unroll
            for (int part = 0; part < 4; part++) {
                const int block = part / 2, half = part % 2;
                int column = tile.column + 8 * block + lane / 4;
                int row = tile.row + 8 * warpgroup + 2 * warp + half;
                if (row >= height || column >= width) continue;
                row = row * grow + tile.down, column = column * grow + tile.right;
                const long long at = start + ((long long)row * width * grow + column) * 4;
                u32* to = reinterpret_cast<u32*>(out) + at;
                const u32* from = reinterpret_cast<const u32*>(residual) + at;
                u32 more[WIDE / 8];
#pragma unroll
                for (int g = 0; g < WIDE / 8; g++)
                    more[g] = has_residual && g < planes ? from[g * plane_words] : 0;
#pragma unroll
                for (int g = 0; g < WIDE / 8; g++) {
                    u32 b = plus[4 * g];
                    float low = d[block][4 * g + 2 * half] + to_float((u16)b, IS_BF16)
                                + to_float((u16)more[g], IS_BF16);
                    float high = d[block][4 * g + 2 * half + 1] + to_float((u16)(b >> 16), IS_BF16)
                                 + to_float((u16)(more[g] >> 16), IS_BF16);
                    u32 both = from_floats(low, high, IS_BF16);
                    if (g < planes) {
                        to[g * plane_words] = both;
                        if (again) to[g * plane_words + frame_words] = both;
                    }
                }
            }
        }
    }
}

// Group norms --------------------------------------------------------------------------------------

__device__ __forceinline__ float sum_of_warp(float x) {
#pragma unroll
    for (int step = 16; step; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

// Mean and variance of each channel over each of gridDim.x equal parts of its pixels, about the
// part's first pixel: (planes, parts, 2, 8).
extern "C" __global__ void __launch_bounds__(256) part_moments(
    const u16* x, float* out, int pixels, int size) {
    __shared__ float sums[8][16];
    const uint4* from = reinterpret_cast<const uint4*>(x) + (long long)blockIdx.y * pixels
                        + (long long)blockIdx.x * size;
    float pivot[8], y[8], sum[8] = {}, square[8] = {};
    to_floats(from[0], pivot, IS_BF16);
    for (int i = threadIdx.x; i < size; i += 256) {
        to_floats(from[i], y, IS_BF16);
#pragma unroll
        for (int c = 0; c < 8; c++) {
            y[c] -= pivot[c];
            sum[c] += y[c];
            square[c] += y[c] * y[c];
        }
    }
#pragma unroll
    for (int c = 0; c < 8; c++) {
        sum[c] = sum_of_warp(sum[c]);
        square[c] = sum_of_warp(square[c]);
        if (threadIdx.x % 32 == 0) {
            sums[threadIdx.x / 32][c] = sum[c];
            sums[threadIdx.x / 32][8 + c] = square[c];
        }
    }
    __syncthreads();
    if (threadIdx.x < 8) {
        float first = 0.0f, second = 0.0f;
        for (int warp = 0; warp < 8; warp++) {
            first += sums[warp][threadIdx.x];
            second += sums[warp][8 + threadIdx.x];
        }
        float mean = first / size;  // about the pivot
        float* to = out + ((long long)blockIdx.y * gridDim.x + blockIdx.x) * 16 + threadIdx.x;
        to[0] = to_float(reinterpret_cast<const u16*>(from)[threadIdx.x], IS_BF16) + mean;
        to[8] = second / size - mean * mean;
    }
}

// What a group norm multiplies each channel by and adds to it: (batch, channels, 2). A block is a
// group of a video, a warp.
extern "C" __global__ void __launch_bounds__(32) affine(
    const float* parts_of, const u16* weight, const u16* bias, float* out, int channels, int groups,
    int parts, double eps) {
    const int each = channels / groups, video = blockIdx.x / groups, group = blockIdx.x % groups;
    const int count = each * parts;
    auto at = [&](int i, int which) {
        int channel = group * each + i % each, part = i / each;
        return parts_of[(((long long)video * (channels / 8) + channel / 8) * parts + part) * 16
                        + 8 * which + channel % 8];
    };
    float sum = 0.0f, within = 0.0f, between = 0.0f;
    for (int i = threadIdx.x; i < count; i += 32) sum += at(i, 0), within += at(i, 1);
    float mean = sum_of_warp(sum) / count;
    for (int i = threadIdx.x; i < count; i += 32) {
        float off = at(i, 0) - mean;
        between += off * off;
    }
    float variance = (sum_of_warp(within) + sum_of_warp(between)) / count;
    float scale = rsqrtf(variance + (float)eps);
    for (int i = threadIdx.x; i < each; i += 32) {
        int channel = group * each + i;
        float f = scale * to_float(weight[channel], IS_BF16);
        float* to = out + ((long long)video * channels + channel) * 2;
        to[0] = f;
        to[1] = to_float(bias[channel], IS_BF16) - mean * f;
    }
}

// out = silu((x * f + g) * scale + shift), the latter two enlarged by the nearest.
extern "C" __global__ void __launch_bounds__(256) modulate(
    const u16* x, u16* out, const float* factors, const u16* scale, const u16* shift, int frames,
    int height, int width, int z_frames, int z_height, int z_width) {
    const int pixel = blockIdx.x * 256 + threadIdx.x, frame = blockIdx.y, plane = blockIdx.z;
    if (pixel >= height * width) return;
    const bool apart = frames > 1 && frames % 2 == 1;  // the first frame has a latent of its own
    int z_frame = !apart ? frame * z_frames / frames
                  : frame == 0 ? 0
                               : 1 + (frame - 1) * (z_frames - 1) / (frames - 1);
    int z_row = pixel / width * z_height / height, z_column = pixel % width * z_width / width;
    long long z = (((long long)plane * z_frames + z_frame) * z_height + z_row) * z_width + z_column;
    long long at = ((long long)plane * frames + frame) * height * width + pixel;
    float y[8], by[8], plus[8];
    to_floats(reinterpret_cast<const uint4*>(x)[at], y, IS_BF16);
    to_floats(reinterpret_cast<const uint4*>(scale)[z], by, IS_BF16);
    to_floats(reinterpret_cast<const uint4*>(shift)[z], plus, IS_BF16);
    const float2* f = reinterpret_cast<const float2*>(factors) + plane * 8;
#pragma unroll
    for (int c = 0; c < 8; c++) {
        float2 of = f[c];
        y[c] = fmaf(fmaf(y[c], of.x, of.y), by[c], plus[c]);
        y[c] = __fdividef(y[c], 1.0f + __expf(-y[c]));
    }
    reinterpret_cast<uint4*>(out)[at] = from_eight(y);
}
