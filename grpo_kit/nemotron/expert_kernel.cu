// Products of a few rows with many NF4 matrices, one launch for all of them. expert_kernel.py launches these kernels.
//
// A pair is a row of x and an expert. Block (p, t) computes TILE outputs of pair p, and of the next pair of the same
// expert if there is one: every byte of the matrix is read and decoded once for both. Pairs at an odd place among those
// of their expert, and pairs whose expert has no address in `table`, have nothing to do.
//
// A warp takes TALL matrix rows at once, and a lane 32 values of each at a time (one 16-byte load, half a scale block),
// so that a warp reads 512 neighbouring bytes. This needs sm_75 or newer and no header. Sums are float32, in a fixed
// order.
//
// An expert's LoRA is read where PEFT keeps it: `low_rank` multiplies with A, and `product` adds B's part to its sums.

constexpr int WARPS = 8, TALL = 4, TILE = WARPS * TALL, ROWS = 2;
constexpr int PADDED = 36;  // floats that 32 values of x take, so that lanes read 16 bytes without bank conflicts

struct Matrix {
    const uint4* packed;          // 32 values each, the first in the high half of the first byte
    const unsigned char* absmax;  // a code for each block of 64 values
    const float* nested;          // a scale for 256 codes
    float offset;
};

struct Lora {        // of one expert's matrix; an expert without one has rank 0
    const float* a;  // rank x K
    const float* b;  // N x rank
    long long rank;
    double scale;
};

__device__ float widen(float value) { return value; }

__device__ float widen(unsigned short half) {
#ifdef __CUDACC__
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
#else
    return half_to_float(half);
#endif
}

__device__ unsigned below(int bit) { return bit <= 0 ? 0u : bit >= 32 ? ~0u : (1u << bit) - 1; }

// Of the pairs with the expert of `pair`: how many come before it, and the next one, or -1. The whole warp takes part.
__device__ int2 neighbours(const long long* index, int pairs, int pair) {
    const int lane = threadIdx.x % 32;
    int before = 0, next = -1;
    for (int base = 0; base < pairs; base += 32) {
        const bool same = base + lane < pairs && index[base + lane] == index[pair];
        const unsigned matches = __ballot_sync(~0u, same);
        before += __popc(matches & below(pair - base));
        const unsigned after = matches & ~below(pair - base + 1);
        if (next < 0 && after) next = base + __ffs(after) - 1;
    }
    return make_int2(before, next);
}

// This lane's share of TALL matrix rows, from `first`, times COUNT rows of x.
template <int COUNT>
__device__ void dot(const Matrix& matrix, const float* x, const float* code, const float* level, int first, int N, int K,
                    float (&sum)[TALL][COUNT]) {
    const int chunks = K / 32;
    for (int chunk = threadIdx.x % 32; chunk < chunks; chunk += 32) {
        alignas(16) unsigned packed[TALL][4];
        float scale[TALL], part[TALL][COUNT] = {};
#pragma unroll
        for (int r = 0; r < TALL; ++r) {
            const int at = min(first + r, N - 1) * chunks + chunk;
            *(uint4*)packed[r] = __ldg(matrix.packed + at);
            // Rounded twice, as bitsandbytes does.
            const float block = __fmul_rn(code[__ldg(matrix.absmax + at / 2)], __ldg(matrix.nested + at / 512));
            scale[r] = __fadd_rn(block, matrix.offset);
        }
#pragma unroll
        for (int word = 0; word < 4; ++word) {
            alignas(16) float value[COUNT][8];
#pragma unroll
            for (int m = 0; m < COUNT; ++m) {
                const float4* from = (const float4*)(x + (m * chunks + chunk) * PADDED + word * 8);
                *(float4*)&value[m][0] = from[0];
                *(float4*)&value[m][4] = from[1];
            }
#pragma unroll
            for (int r = 0; r < TALL; ++r) {
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    const float weight = level[packed[r][word] >> 4 * (i ^ 1) & 15];
#pragma unroll
                    for (int m = 0; m < COUNT; ++m) part[r][m] += weight * value[m][i];
                }
            }
        }
#pragma unroll
        for (int r = 0; r < TALL; ++r)
#pragma unroll
            for (int m = 0; m < COUNT; ++m) sum[r][m] += scale[r] * part[r][m];
    }
}

// The sum of all lanes' values, the same in every lane.
__device__ float add_lanes(float value) {
#pragma unroll
    for (int far = 16; far; far /= 2) value += __shfl_xor_sync(~0u, value, far);
    return value;
}

__device__ float relu2(float value) {
    const float positive = value < 0 ? 0 : value;  // NaN stays NaN
    return positive * positive;
}

template <int COUNT, bool WEIGHTED>
__device__ void rows(const Matrix& matrix, const float* x, const float* code, const float* level, const float* weights,
                     const Lora* lora, const float* low, int width, float* out, int2 pair, int first, int N, int K) {
    float sum[TALL][COUNT] = {};
    dot<COUNT>(matrix, x, code, level, first, N, K, sum);
    const int rank = lora ? (int)lora->rank : 0;
    for (int i = threadIdx.x % 32; i < rank; i += 32)
#pragma unroll
        for (int r = 0; r < TALL; ++r) {
            const float weight = lora->b[(long long)min(first + r, N - 1) * rank + i];
#pragma unroll
            for (int m = 0; m < COUNT; ++m) sum[r][m] += weight * low[(long long)(m ? pair.y : pair.x) * width + i];
        }
#pragma unroll
    for (int r = 0; r < TALL; ++r)
#pragma unroll
        for (int m = 0; m < COUNT; ++m) {
            const float total = add_lanes(sum[r][m]);
            const int which = m ? pair.y : pair.x;
            if (threadIdx.x % 32 == r * COUNT + m && first + r < N)
                out[(long long)which * N + first + r] = WEIGHTED ? total * weights[which] : relu2(total);
        }
}

// For every pair, `low` = scale * A * x of its expert's LoRA, in a row of `width` values: one warp each. The row of x is
// as in `product`; `loras` is by expert.
template <typename In>
__global__ void __launch_bounds__(32 * WARPS)
low_rank(const In* x, const long long* index, const long long* table, const Lora* loras, float* low, int fan, int width,
         int K) {
    const long long expert = index[blockIdx.x];
    const Lora* lora = loras + expert;
    const int i = blockIdx.y * WARPS + threadIdx.x / 32;
    if (!table[expert] || i >= lora->rank) return;
    const In* row = x + (long long)(blockIdx.x / fan) * K;
    const float* a = lora->a + (long long)i * K;
    float sum = 0;
#pragma unroll 4
    for (int k = threadIdx.x % 32; k < K; k += 32) sum += __ldg(a + k) * widen(row[k]);
    sum = add_lanes(sum);
    if (threadIdx.x % 32 == 0) low[(long long)blockIdx.x * width + i] = (float)lora->scale * sum;
}

// For every pair, relu2 of the product, or the product times the pair's weight. x is float, or unsigned short for
// float16; the row of pair p is p / fan. A matrix is N x K; its sections begin at byte offsets from the address in
// `table`. `loras` is null, or has each expert's LoRA, of which `low` has the part of A in rows of `width` values.
template <typename In, bool WEIGHTED>
__global__ void __launch_bounds__(32 * WARPS, 3)
product(const In* x, const long long* index, const long long* table, const float* weights, const float* codes,
        const float* levels, const Lora* loras, const float* low, float* out, int pairs, int fan, int width, int N,
        int K, int packed_at, int absmax_at, int nested_at, int offset_at) {
    extern __shared__ float4 staged[];
    __shared__ float code[256], level[16];
    const char* data = (const char*)table[index[blockIdx.x]];
    if (!data) return;
    const int2 place = neighbours(index, pairs, blockIdx.x);
    if (place.x % ROWS) return;
    const int2 pair = make_int2(blockIdx.x, place.y);

    float* kept = (float*)staged;
    for (int m = 0; m < ROWS && (m == 0 || pair.y >= 0); ++m) {
        const In* row = x + (long long)((m ? pair.y : pair.x) / fan) * K;
        for (int k = threadIdx.x; k < K; k += blockDim.x)
            kept[(m * (K / 32) + k / 32) * PADDED + k % 32] = widen(row[k]);
    }
    code[threadIdx.x] = codes[threadIdx.x];
    if (threadIdx.x < 16) level[threadIdx.x] = levels[threadIdx.x];
    __syncthreads();

    const Matrix matrix = {(const uint4*)(data + packed_at), (const unsigned char*)(data + absmax_at),
                           (const float*)(data + nested_at), *(const float*)(data + offset_at)};
    const int first = blockIdx.y * TILE + threadIdx.x / 32 * TALL;
    if (first >= N) return;
    const Lora* lora = loras ? loras + index[blockIdx.x] : nullptr;
    if (pair.y < 0) rows<1, WEIGHTED>(matrix, kept, code, level, weights, lora, low, width, out, pair, first, N, K);
    else rows<2, WEIGHTED>(matrix, kept, code, level, weights, lora, low, width, out, pair, first, N, K);
}
