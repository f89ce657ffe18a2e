// Rows of activations to e4m3 with one scale a row, in one pass: read once, written once.
// Optionally through GELU (tanh) or GEGLU, which otherwise cost a pass of their own over a
// feed-forward's widest tensor. Needs sm_89 or newer. After rows.cu, and compiled for one width of
// rows, one ACTIVATION and one type (IS_BF16).

#define GELU_TANH 1
#define GEGLU 2  // a row has twice COLUMNS values: the first half times GELU (erf) of the second

__device__ __forceinline__ float gelu_tanh(float x) {
    float t, u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(u));
    return 0.5f * x * (1.0f + t);
}

__device__ __forceinline__ float gelu_erf(float x) {
    return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
}

extern "C" __global__ void __launch_bounds__(THREADS)
    quantize_rows(const u16* x, u8* out, float* scale, int rows) {
    __shared__ float shared[THREADS / 32];
    const long long row = row_of_thread();
    const int lane = threadIdx.x % LANES;
    if (row >= rows) return;  // a whole warp, or a whole block
    const u16* from = x + row * (ACTIVATION == GEGLU ? 2 * COLUMNS : COLUMNS);
    uint4 raw[VECTORS], gate[VECTORS];
    load_row(from, raw, lane);
    if (ACTIVATION == GEGLU) load_row(from + COLUMNS, gate, lane);
    float values[VECTORS][8], top = 1e-12f;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        float by[8];
        to_floats(raw[i], values[i], IS_BF16);
        if (ACTIVATION == GEGLU) to_floats(gate[i], by, IS_BF16);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float& y = values[i][j];
            if (ACTIVATION == GELU_TANH) y = gelu_tanh(y);
            if (ACTIVATION == GEGLU) y *= gelu_erf(by[j]);
            top = fmaxf(top, fabsf(y));
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
    if (lane == 0) scale[row] = top / 448.0f;
}
