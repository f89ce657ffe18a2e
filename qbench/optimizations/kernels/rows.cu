// What kernels over rows of activations share. A row of COLUMNS values is in the registers of the
// LANES threads that work on it: a warp, or where it is too wide for one, all of a block.

#define THREADS (LANES == 32 ? 256 : LANES)
#define VECTORS ((COLUMNS / 8 + LANES - 1) / LANES)  // of 8 values, a thread's

// A thread's row. The last come first: of them most is left in the cache by the kernel that wrote
// them, and the next one, which begins at the first, finds those.
__device__ __forceinline__ long long row_of_thread() {
    return (long long)(gridDim.x - 1 - blockIdx.x) * (THREADS / LANES) + threadIdx.x / LANES;
}

// The sum or the largest over a row, in each of its threads.
__device__ __forceinline__ float over_row(float x, bool sum, float* shared) {
#pragma unroll
    for (int step = 16; step; step /= 2) {
        float y = __shfl_xor_sync(0xffffffffu, x, step);
        x = sum ? x + y : fmaxf(x, y);
    }
    if (LANES > 32) {
        __syncthreads();  // all have read what was there before
        if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
        __syncthreads();
        x = shared[0];
#pragma unroll
        for (int i = 1; i < LANES / 32; i++) x = sum ? x + shared[i] : fmaxf(x, shared[i]);
    }
    return x;
}

// Issued together, before the first is waited for; zeros past the row's end.
__device__ __forceinline__ void load_row(const u16* row, uint4* raw, int lane) {
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const int at = i * LANES + lane;
        raw[i] = at * 8 < COLUMNS ? reinterpret_cast<const uint4*>(row)[at]
                                  : make_uint4(0, 0, 0, 0);
    }
}

__device__ __forceinline__ void load8f(const float* at, float* y) {
    float4 a = reinterpret_cast<const float4*>(at)[0], b = reinterpret_cast<const float4*>(at)[1];
    y[0] = a.x, y[1] = a.y, y[2] = a.z, y[3] = a.w, y[4] = b.x, y[5] = b.y, y[6] = b.z, y[7] = b.w;
}

__device__ __forceinline__ void store_codes(u8* row, int at, const float* y, float f) {
    reinterpret_cast<uint2*>(row)[at] =
        make_uint2(to_e4m3x4(y[0] * f, y[1] * f, y[2] * f, y[3] * f),
                   to_e4m3x4(y[4] * f, y[5] * f, y[6] * f, y[7] * f));
}
