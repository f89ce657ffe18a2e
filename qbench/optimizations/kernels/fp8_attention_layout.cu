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
