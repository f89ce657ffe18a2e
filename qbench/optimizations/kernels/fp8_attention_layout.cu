// How quantized K and V lie in memory between fp8_pack.cu, which writes them, and fp8_attention.cu,
// which says why. D, the channels of a head, is 64 or 128.

#define TILE (D == 64 ? 128 : 192)  // keys a tile
#define ROWS (D + 8)                // rows of V^T: the channels, one of ones, seven of zeros
#define K_BYTES (TILE * D)
#define V_BYTES (TILE * ROWS)
#define TILE_BYTES (K_BYTES + V_BYTES + 128)  // then the tile's K scale, padded (SKIP: see pack)

// By twos for heads of 64, so that their results stay what they have been, bit for bit: a tile of
// padding repeats the last key with a scale of its own, and may round it otherwise.
__device__ __forceinline__ int tiles_of(int tokens) {
    const int at_once = D == 64 ? 2 : 1;
    return (tokens + at_once * TILE - 1) / (at_once * TILE) * at_once;
}

#define PARTS (D / 8)  // threads that share a token, neighbours of a warp, eight channels each
#define Q_MAX (D == 64 ? 16.0f : 15.0f)  // |q|, |k| after scaling: D * Q_MAX * 32 is inside FP16

struct Query {
    uint2 codes;   // a thread's eight
    float2 scale;  // a query's: what one unit of q8.k8 is in codes, apart from K's; its norm in codes
};

// A query of a head, of which this thread has the eight channels `x`. codes: of one unit of q.k.
__device__ __forceinline__ Query quantize_query(const float* x, float codes) {
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
    // Rounded up to FP16's mantissa before it is used, so that the multiplier in the main loop is
    // exact.
    float unit = top / Q_MAX * codes;
    unit = __uint_as_float((__float_as_uint(unit) + 0x1fffu) & ~0x1fffu);
    unit = fmaxf(unit, 6e-5f / 256.0f);
    float f = codes / unit;
    Query found;
    found.codes.x = to_e4m3x4(x[0] * f, x[1] * f, x[2] * f, x[3] * f);
    found.codes.y = to_e4m3x4(x[4] * f, x[5] * f, x[6] * f, x[7] * f);
    found.scale = make_float2(unit, sqrtf(norm) * codes);
    return found;
}
