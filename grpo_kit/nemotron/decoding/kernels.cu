// What stands between the products of a decoding step, in one launch each: a Mamba-2 layer's update and its norm, the sum
// of a layer's output with the residual and the norm behind it, and the router's choice. kernels.py launches these
// kernels; mamba.py and router.py have the same in PyTorch.
//
// Arithmetic is float32, and sums are added in a fixed order. This needs sm_75 or newer and no header.

constexpr int THREADS = 512, WARPS = THREADS / 32;
constexpr int TALL = 4;   // rows of the state space that a warp updates at once, all of one head
constexpr int WIDTH = 4;  // of the convolution

struct Half { unsigned short bits; };
struct Bfloat { unsigned short bits; };

template <typename T>
struct alignas(WIDTH * sizeof(T)) Window { T at[WIDTH]; };

__device__ float widen(float value) { return value; }
__device__ float widen(Bfloat value) {
    const unsigned bits = (unsigned)value.bits << 16;
    return *(const float*)&bits;
}
__device__ float widen(Half value) {
#ifdef __CUDACC__
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
#else
    return half_to_float(value.bits);
#endif
}

// A float in the type of the second argument, to the nearest, ties to even.
__device__ float narrow(float value, float) { return value; }
__device__ Bfloat narrow(float value, Bfloat) {
    const unsigned bits = *(const unsigned*)&value;
    if (value != value) return {0x7fc0};
    return {(unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
__device__ Half narrow(float value, Half) {
#ifdef __CUDACC__
    Half half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half.bits) : "f"(value));
    return half;
#else
    return {float_to_half(value)};
#endif
}

__device__ float sigmoid(float value) { return 1 / (1 + expf(-value)); }
__device__ float silu(float value) { return value * sigmoid(value); }
__device__ float softplus(float value) { return value > 20 ? value : log1pf(expf(value)); }

// The sum of all lanes' values, the same in every lane.
__device__ float add_lanes(float value) {
#pragma unroll
    for (int far = 16; far; far /= 2) value += __shfl_xor_sync(~0u, value, far);
    return value;
}

// The sum of all threads' values, the same in every thread. `parts` are of shared memory, one for each warp.
__device__ float add_threads(float value, float* parts) {
    value = add_lanes(value);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    float total = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) total += parts[warp];
    return total;
}

// Block (g, r) computes group g of row r: the heads that share B and C, and that the norm takes together. No other block
// needs their part of the states. `projected` is gate, x, B, C and time step, one behind the other.
template <typename T>
__global__ void __launch_bounds__(THREADS, 2)
update_mamba(const T* projected, T* conv, float* ssm, const T* conv_weight, const T* conv_bias, const float* dt_bias,
             const float* a, const float* d, const T* norm_weight, T* out, int groups, int heads, int head_dim,
             int size, double eps) {
    extern __shared__ float4 staged[];
    __shared__ float parts[WARPS];
    const int group = blockIdx.x, row = blockIdx.y;
    const int inner = groups * heads * head_dim, channels = inner + 2 * groups * size;  // heads: of a group
    const int mine = heads * head_dim, first_head = group * heads;
    const T* gate = projected + (long long)row * (inner + channels + groups * heads) + group * mine;
    const T* input = gate - group * mine + inner;
    const T* dt = input + channels + first_head;
    float* b = (float*)staged;
    float* c = b + size;
    float* x = c + size;  // and later the result
    float* step = x + mine;
    float* decay = step + heads;

    for (int i = threadIdx.x; i < 2 * size + mine; i += THREADS) {
        const int channel = i < size       ? inner + group * size + i
                            : i < 2 * size ? inner + (groups + group - 1) * size + i
                                           : group * mine + i - 2 * size;
        Window<T>* window = (Window<T>*)conv + (long long)row * channels + channel;
        Window<T> last = *window;
        const Window<T> weight = ((const Window<T>*)conv_weight)[channel];
        float sum = conv_bias ? widen(conv_bias[channel]) : 0;
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
            last.at[k] = k + 1 < WIDTH ? last.at[k + 1] : input[channel];
            sum += widen(last.at[k]) * widen(weight.at[k]);
        }
        *window = last;
        b[i] = silu(sum);
    }
    for (int head = threadIdx.x; head < heads; head += THREADS) {
        step[head] = softplus(widen(dt[head]) + dt_bias[first_head + head]);
        decay[head] = expf(step[head] * a[first_head + head]);
    }
    __syncthreads();

    const int lane = threadIdx.x % 32, quads = size / 4;
    float4* state = (float4*)ssm + ((long long)row * groups + group) * mine * quads;
    for (int first = threadIdx.x / 32 * TALL; first < mine; first += WARPS * TALL) {
        const int head = first / head_dim;
        const float keep = decay[head];
        float sum[TALL] = {};
        for (int quad = lane; quad < quads; quad += 32) {
            float4 value[TALL];
#pragma unroll
            for (int r = 0; r < TALL; ++r) value[r] = state[(first + r) * quads + quad];
            const float4 write = ((const float4*)b)[quad], read = ((const float4*)c)[quad];
#pragma unroll
            for (int r = 0; r < TALL; ++r) {
                const float scale = step[head] * x[first + r];
                value[r].x = value[r].x * keep + scale * write.x;
                value[r].y = value[r].y * keep + scale * write.y;
                value[r].z = value[r].z * keep + scale * write.z;
                value[r].w = value[r].w * keep + scale * write.w;
                state[(first + r) * quads + quad] = value[r];
                sum[r] += value[r].x * read.x + value[r].y * read.y + value[r].z * read.z + value[r].w * read.w;
            }
        }
#pragma unroll
        for (int r = 0; r < TALL; ++r) {
            const float total = add_lanes(sum[r]);
            if (lane == r) x[first + r] = total + d[first_head + head] * x[first + r];
        }
    }
    __syncthreads();

    float squares = 0;
    for (int i = threadIdx.x; i < mine; i += THREADS) {
        x[i] *= silu(widen(gate[i]));
        squares += x[i] * x[i];
    }
    const float scale = rsqrtf(add_threads(squares, parts) / mine + (float)eps);
    for (int i = threadIdx.x; i < mine; i += THREADS) {
        const float normed = widen(narrow(x[i] * scale, T()));  // rounded twice, as in transformers
        out[(long long)row * inner + group * mine + i] = narrow(normed * widen(norm_weight[group * mine + i]), T());
    }
}

// A block for each row: the residual plus `update`, if there is one; its norm, of the sum rounded to the weight's type.
template <typename R, typename U, typename W>
__global__ void __launch_bounds__(THREADS)
add_norm(R* residual, const U* update, const W* weight, W* out, int hidden, double eps) {
    __shared__ float parts[WARPS];
    const long long start = (long long)blockIdx.x * hidden;
    float squares = 0;
    for (int i = threadIdx.x; i < hidden; i += THREADS) {
        R sum = residual[start + i];
        if (update) residual[start + i] = sum = narrow(widen(sum) + widen(update[start + i]), R());
        const float value = widen(narrow(widen(sum), W()));
        squares += value * value;
    }
    const float scale = rsqrtf(add_threads(squares, parts) / hidden + (float)eps);
    for (int i = threadIdx.x; i < hidden; i += THREADS) {
        const float value = widen(narrow(widen(residual[start + i]), W()));
        out[start + i] = narrow(value * scale * widen(weight[i]), W());
    }
}

// A number that is larger for a larger value, with NaN above all, and among equal values for a smaller index.
__device__ unsigned long long rank(float value, int index) {
    const unsigned bits = *(const unsigned*)&value;
    const unsigned key = value != value ? ~0u : bits >> 31 ? ~bits : bits | 0x80000000u;
    return (unsigned long long)key << 32 | ~(unsigned)index;
}

// A warp for each row: the k experts with the largest sums of score and bias, and their scores divided by the sum of
// the products with `ones`, which are equal.
__global__ void __launch_bounds__(32)
choose(const float* logits, const float* bias, const float* ones, long long* index, float* weights, int experts, int k) {
    extern __shared__ float4 staged[];
    unsigned long long* left = (unsigned long long*)staged;  // a lane reads and writes its own only
    const int lane = threadIdx.x;
    const float* row = logits + (long long)blockIdx.x * experts;
    for (int expert = lane; expert < experts; expert += 32) left[expert] = rank(sigmoid(row[expert]) + bias[expert], expert);
    float score = 0, total = 0;
    for (int i = 0; i < k; ++i) {
        unsigned long long best = 0;
        for (int expert = lane; expert < experts; expert += 32) best = left[expert] > best ? left[expert] : best;
#pragma unroll
        for (int far = 16; far; far /= 2) {
            const unsigned long long other = __shfl_xor_sync(~0u, best, far);
            best = other > best ? other : best;
        }
        const int expert = (int)~(unsigned)best;
        const float chosen = sigmoid(row[expert]);
        total += chosen;
        if (lane == i) score = chosen, index[(long long)blockIdx.x * k + i] = expert;
        if (lane == expert % 32) left[expert] = 0;
    }
    if (lane < k) weights[(long long)blockIdx.x * k + lane] = score / (total * ones[0]);
}
