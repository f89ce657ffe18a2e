// Query and key on their way to attention: RMS norm over all heads, then rotary embedding of
// neighbouring channels. After common.cu and rows.cu; compiled for one width of rows (COLUMNS), the
// channels of a head (D) and one type (IS_BF16). The tables are (tokens, D), each value twice, as
// diffusers has them: those of an even channel's cosine and an odd one's sine count.

// What is needed of a row's values before any of them is known: 1 / sqrt(mean of squares + eps).
__device__ __forceinline__ float inverse_rms(const uint4* raw, float eps, float* shared) {
    float square = 0.0f;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        float x[8];
        to_floats(raw[i], x, IS_BF16);
#pragma unroll
        for (int j = 0; j < 8; j++) square = fmaf(x[j], x[j], square);
    }
    return rsqrtf(over_row(square, true, shared) / COLUMNS + eps);
}

struct Turn {  // of eight channels: the cosines and sines of four angles
    float cosine[4], sine[4];
};

__device__ __forceinline__ Turn turn(const float* cosine, const float* sine) {
    float c[8], s[8];
    load8f(cosine, c);
    load8f(sine, s);
    return {{c[0], c[2], c[4], c[6]}, {s[1], s[3], s[5], s[7]}};
}

// Eight channels of a row, normed and rotated, rounded to the type that they came in.
__device__ __forceinline__ uint4 rotated(uint4 raw, uint4 weight, float by, const Turn& by_turn) {
    float x[8], f[8];
    to_floats(raw, x, IS_BF16);
    to_floats(weight, f, IS_BF16);
    uint4 words;
    u32* w = reinterpret_cast<u32*>(&words);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        float a = x[2 * j] * by * f[2 * j], b = x[2 * j + 1] * by * f[2 * j + 1];
        float c = by_turn.cosine[j], s = by_turn.sine[j];
        // Spelt out, for every kernel here must round it alike.
        w[j] = from_floats(fmaf(a, c, -(b * s)), fmaf(a, s, b * c), IS_BF16);
    }
    return words;
}

extern "C" __global__ void __launch_bounds__(THREADS) rotate(
    const u16* __restrict__ x, const u16* __restrict__ weight, const float* __restrict__ cosine,
    const float* __restrict__ sine, u16* __restrict__ out, int rows, int tokens, double eps) {
    __shared__ float shared[THREADS / 32];
    const long long row = row_of_thread();
    const int lane = threadIdx.x % LANES;
    if (row >= rows) return;  // a whole warp, or a whole block
    uint4 raw[VECTORS];
    load_row(x + row * COLUMNS, raw, lane);
    const float by = inverse_rms(raw, (float)eps, shared);
    const long long token = row % tokens * D;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const int at = i * LANES + lane;
        if (at * 8 >= COLUMNS) break;
        const int channel = at * 8 % D;
        reinterpret_cast<uint4*>(out + row * COLUMNS)[at] =
            rotated(raw[i], reinterpret_cast<const uint4*>(weight)[at], by,
                    turn(cosine + token + channel, sine + token + channel));
    }
}
