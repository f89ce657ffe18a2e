// What a transformer block does between two GEMMs, in one pass: x + more * gate (written to `sum`),
// the layer norm of that, times (one + scale), plus shift, to e4m3 with one scale a row. Needs sm_89
// or newer. After rows.cu, and compiled for one width of rows, one type (IS_BF16), and for whether
// something is ADDED and GATED.

extern "C" __global__ void __launch_bounds__(THREADS) normalize(
    const u16* __restrict__ x, const u16* __restrict__ more, const float* __restrict__ gate,
    const float* __restrict__ scale, const float* __restrict__ shift,
    u16* sum, u8* out, float* row_scale, int rows, int rows_each, double one, double eps) {
    __shared__ float shared[THREADS / 32];
    const long long row = row_of_thread();
    const int lane = threadIdx.x % LANES;
    if (row >= rows) return;  // a whole warp, or a whole block
    const long long video = row / rows_each * COLUMNS;
    uint4 raw[VECTORS], added[VECTORS];
    load_row(x + row * COLUMNS, raw, lane);
    if (ADDED) load_row(more + row * COLUMNS, added, lane);
    float values[VECTORS][8], total = 0.0f;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const int at = i * LANES + lane;
        float* y = values[i];
        to_floats(raw[i], y, IS_BF16);
        if (ADDED && at * 8 < COLUMNS) {
            float plus[8], by[8];
            to_floats(added[i], plus, IS_BF16);
            if (GATED) {
                load8f(gate + video + at * 8, by);
#pragma unroll
                for (int j = 0; j < 8; j++) plus[j] *= by[j];
            }
            uint4 words;
            u32* w = reinterpret_cast<u32*>(&words);
#pragma unroll
            for (int j = 0; j < 4; j++)
                w[j] = from_floats(y[2 * j] + plus[2 * j], y[2 * j + 1] + plus[2 * j + 1], IS_BF16);
            reinterpret_cast<uint4*>(sum + row * COLUMNS)[at] = words;
            to_floats(words, y, IS_BF16);
        }
#pragma unroll
        for (int j = 0; j < 8; j++) total += y[j];
    }
    const float mean = over_row(total, true, shared) / COLUMNS;
    float square = 0.0f;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        if ((i * LANES + lane) * 8 >= COLUMNS) break;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            values[i][j] -= mean;
            square = fmaf(values[i][j], values[i][j], square);
        }
    }
    const float by = rsqrtf(over_row(square, true, shared) / COLUMNS + (float)eps);
    float top = 1e-12f;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const int at = i * LANES + lane;
        if (at * 8 >= COLUMNS) break;
        float f[8], plus[8];
        load8f(scale + video + at * 8, f);
        load8f(shift + video + at * 8, plus);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            values[i][j] = fmaf(values[i][j] * by, (float)one + f[j], plus[j]);
            top = fmaxf(top, fabsf(values[i][j]));
        }
    }
    top = over_row(top, false, shared);
    const float f = 448.0f / top;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const int at = i * LANES + lane;
        if (at * 8 >= COLUMNS) break;
        store_codes(out + row * COLUMNS, at, values[i], f);
    }
    if (lane == 0) row_scale[row] = top / 448.0f;
}
