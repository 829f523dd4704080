// Orthogonal projection of one gradient row against others in two launches. CUDA C++ for sm_80 and later.
//
// The kernels are written once, as phases over the lanes of a block: under nvcc a lane is a thread and a phase ends at a
// barrier; under a host compiler a lane is a loop iteration, so that tests run this very arithmetic without a GPU.
// Tables and sums are those of qunlearn_kernels/tiles.py and two_launch.py: table int32 [4, tiles] (start and length in
// blocks of ALIGN floats, unit, segment), sums float64 [3 or 5, tiles] with rows <f,r>, <r,r>, <f,f> and, with a metric,
// <r,Pf>, <r,Pr>. Rows start at multiples of 16 bytes; no atomics; the launch grid never changes a bit of the result.

#include <cstdint>

namespace {

constexpr int LANES = 256;
constexpr int ALIGN = 256;

#ifdef __CUDACC__
// The 1 lets ptxas use what registers it needs: without it, it spills on sm_80 for the sake of occupancy.
#define KERNEL __global__ void __launch_bounds__(LANES, 1)
#define DEVICE __device__ __forceinline__
#define SHARED __shared__
#define EACH_LANE for (int lane = threadIdx.x, once = 1; once; once = 0)
#define BARRIER __syncthreads()
#define PROGRAM const int program = blockIdx.x, programs = gridDim.x
#define LAUNCH(kernel, ...)                                                            \
    kernel<<<programs, LANES, 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__); \
    return static_cast<int>(cudaGetLastError())
#else
struct alignas(16) float4 { float x, y, z, w; };
int program = 0, programs = 1;
#define KERNEL void
#define DEVICE inline
#define SHARED
#define EACH_LANE for (int lane = 0; lane < LANES; ++lane)
#define BARRIER
#define PROGRAM
#define LAUNCH(kernel, ...)                                                          \
    ::programs = programs;                                                             \
    for (::program = 0; ::program < programs; ++::program) kernel(__VA_ARGS__);     \
    (void)stream;                                                                      \
    return 0
#endif

DEVICE float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }

DEVICE void store4(float* p, float4 v) { *reinterpret_cast<float4*>(p) = v; }

DEVICE float4 times(float4 a, float4 b) { return {a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w}; }

DEVICE void add(float4& s, float4 a, float4 b) {
    s.x += a.x * b.x;
    s.y += a.y * b.y;
    s.z += a.z * b.z;
    s.w += a.w * b.w;
}

DEVICE double whole(float4 s) { return (double(s.x) + double(s.y)) + (double(s.z) + double(s.w)); }

// Sums of one lane: four float32 accumulators a column, at most LONGEST / (4 LANES) additions each.
template <bool METRIC>
struct Sums {
    static constexpr int COLUMNS = METRIC ? 5 : 3;
    float4 of[COLUMNS];

    DEVICE Sums() {
        for (int c = 0; c < COLUMNS; ++c) of[c] = {0.0f, 0.0f, 0.0f, 0.0f};
    }

    DEVICE void take(float4 x, float4 y, const float* metric) {
        add(of[0], x, y);
        add(of[1], y, y);
        add(of[2], x, x);
        if constexpr (METRIC) {
            const float4 z = times(y, load4(metric));
            add(of[3], x, z);
            add(of[4], y, z);
        }
    }

    DEVICE void put(double* lanes, int lane) const {
        for (int c = 0; c < COLUMNS; ++c) lanes[c * LANES + lane] = whole(of[c]);
    }
};

// Adds lanes [columns, LANES] pairwise until `width` entries a column are left.
DEVICE void fold(double* lanes, int columns, int width) {
    BARRIER;
    for (int half = LANES / 2; half >= width; half /= 2) {
        EACH_LANE {
            if (lane < half)
                for (int c = 0; c < columns; ++c) lanes[c * LANES + lane] += lanes[c * LANES + lane + half];
        }
        BARRIER;
    }
}

// Sums of values [begin:end, width] over the first axis, in lanes[0:width]; the order depends on the range only.
template <bool NEGATIVE = false>
DEVICE void gather(const double* values, int64_t begin, int64_t end, int width, double* lanes) {
    EACH_LANE {
        double s = 0.0;
        for (int64_t k = begin * width + lane; k < end * width; k += LANES)
            s += NEGATIVE ? double(values[k] < 0.0) : values[k];
        lanes[lane] = s;
    }
    fold(lanes, 1, width);
}

DEVICE double gathered(const double* values, int64_t begin, int64_t end, double* lanes) {
    gather(values, begin, end, 1, lanes);
    const double s = lanes[0];
    BARRIER;
    return s;
}

template <bool METRIC>
KERNEL dot_partials(const float* f, const float* r, const float* metric, const int32_t* table, double* sums, int tiles) {
    SHARED double lanes[Sums<METRIC>::COLUMNS * LANES];
    PROGRAM;
    for (int t = program; t < tiles; t += programs) {
        const int64_t base = int64_t(table[t]) * ALIGN;
        const int size = table[tiles + t] * ALIGN;
        EACH_LANE {
            Sums<METRIC> s;
#pragma unroll 2
            for (int k = 4 * lane; k < size; k += 4 * LANES)
                s.take(load4(f + base + k), load4(r + base + k), metric + base + k);
            s.put(lanes, lane);
        }
        fold(lanes, Sums<METRIC>::COLUMNS, 1);
        EACH_LANE {
            if (lane < Sums<METRIC>::COLUMNS) sums[int64_t(lane) * tiles + t] = lanes[lane * LANES];
        }
        BARRIER;
    }
}

// p <- p - lr (share_r r + lam (f_new - share_old f_old)); where int64 [2, tiles]: address and entries, or null.
struct Step {
    const int64_t* where;
    float lr, lam, share_r, share_old;
    int aligned;

    DEVICE float move(float p, float r, float now, float old) const {
        return p - lr * (share_r * r + lam * (now - share_old * old));
    }
};

DEVICE void move_parameters(const Step& step, int tiles, int t, int k, float4 r, float4 now, float4 old) {
    float* p = reinterpret_cast<float*>(step.where[t]) + k;
    const int count = int(step.where[tiles + t]) - k;
    if (step.aligned && count >= 4) {
        const float4 v = load4(p);
        store4(p, {step.move(v.x, r.x, now.x, old.x), step.move(v.y, r.y, now.y, old.y),
                   step.move(v.z, r.z, now.z, old.z), step.move(v.w, r.w, now.w, old.w)});
        return;
    }
    if (count > 0) p[0] = step.move(p[0], r.x, now.x, old.x);
    if (count > 1) p[1] = step.move(p[1], r.y, now.y, old.y);
    if (count > 2) p[2] = step.move(p[2], r.z, now.z, old.z);
    if (count > 3) p[3] = step.move(p[3], r.w, now.w, old.w);
}

// f <- keep f - factor r; given float64 [2, units] holds both, or is null: then they come from sums, and nothing moves
// where a sum is not finite or a tile's <r,Pr> is negative. What is left is measured into after.
template <bool METRIC>
KERNEL project_update(float* f, const float* r, const float* metric, const int32_t* table, const int32_t* first,
                      const double* sums, double* after, const double* given, Step step, int tiles, int units,
                      double eps, int conflict) {
    constexpr int COLUMNS = Sums<METRIC>::COLUMNS;
    SHARED double lanes[COLUMNS * LANES];
    PROGRAM;
    if (given == nullptr) {
        const double total = gathered(sums, 0, int64_t(COLUMNS) * tiles, lanes);
        if (!(total - total == 0.0)) return;
        if constexpr (METRIC) {
            gather<true>(sums + 4 * int64_t(tiles), 0, tiles, 1, lanes);
            if (lanes[0] > 0.0) return;
            BARRIER;
        }
    }
    const int many = (tiles + programs - 1) / programs;
    int last = -1;
    float keep = 1.0f, factor = 0.0f;
    for (int t = program * many; t < tiles && t < (program + 1) * many; ++t) {
        const int unit = table[2 * tiles + t];
        if (unit != last) {
            last = unit;
            if (given != nullptr) {
                keep = float(given[unit]);
                factor = float(given[units + unit]);
            } else {
                const int lo = first[unit], hi = first[unit + 1];
                const double along = gathered(sums + (METRIC ? 3 : 0) * int64_t(tiles), lo, hi, lanes);
                const double norm = gathered(sums + (METRIC ? 4 : 1) * int64_t(tiles), lo, hi, lanes);
                const bool moves = norm > 0.0 && (!conflict || gathered(sums, lo, hi, lanes) < 0.0);
                factor = moves ? float(along / (norm + eps)) : 0.0f;
            }
        }
        const int64_t base = int64_t(table[t]) * ALIGN;
        const int size = table[tiles + t] * ALIGN;
        EACH_LANE {
            Sums<METRIC> s;
#pragma unroll 2
            for (int k = 4 * lane; k < size; k += 4 * LANES) {
                const float4 x = load4(f + base + k), y = load4(r + base + k);
                const float4 now = {keep * x.x - factor * y.x, keep * x.y - factor * y.y, keep * x.z - factor * y.z,
                                    keep * x.w - factor * y.w};
                store4(f + base + k, now);
                s.take(now, y, metric + base + k);
                if (step.where != nullptr) move_parameters(step, tiles, t, k, y, now, x);
            }
            s.put(lanes, lane);
        }
        fold(lanes, COLUMNS, 1);
        EACH_LANE {
            if (lane < COLUMNS) after[int64_t(lane) * tiles + t] = lanes[lane * LANES];
        }
        BARRIER;
    }
}

// <q_j, f> of every tile; q [rows, stride], sums float64 [tiles, WIDTH].
template <int WIDTH>
KERNEL basis_partials(const float* f, const float* q, int64_t stride, const int32_t* table, double* sums, int tiles,
                      int rows) {
    SHARED double lanes[WIDTH * LANES];
    PROGRAM;
    for (int t = program; t < tiles; t += programs) {
        const int64_t base = int64_t(table[t]) * ALIGN;
        const int size = table[tiles + t] * ALIGN;
        EACH_LANE {
            float4 s[WIDTH] = {};
            for (int k = 4 * lane; k < size; k += 4 * LANES) {
                const float4 x = load4(f + base + k);
#pragma unroll
                for (int j = 0; j < WIDTH; ++j)
                    if (j < rows) add(s[j], x, load4(q + j * stride + base + k));
            }
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) lanes[j * LANES + lane] = whole(s[j]);
        }
        fold(lanes, WIDTH, 1);
        EACH_LANE {
            if (lane < WIDTH) sums[int64_t(t) * WIDTH + lane] = lanes[lane * LANES];
        }
        BARRIER;
    }
}

// f <- f - Q'(Q f) unit by unit; what is left of Q f goes to after.
template <int WIDTH>
KERNEL basis_update(float* f, const float* q, int64_t stride, const int32_t* table, const int32_t* first,
                    const double* sums, double* after, int tiles, int rows) {
    SHARED double lanes[WIDTH * LANES];
    PROGRAM;
    const int many = (tiles + programs - 1) / programs;
    int last = -1;
    float factor[WIDTH] = {};
    for (int t = program * many; t < tiles && t < (program + 1) * many; ++t) {
        const int unit = table[2 * tiles + t];
        if (unit != last) {
            last = unit;
            gather(sums, first[unit], first[unit + 1], WIDTH, lanes);
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) factor[j] = float(lanes[j]);
            BARRIER;
        }
        const int64_t base = int64_t(table[t]) * ALIGN;
        const int size = table[tiles + t] * ALIGN;
        EACH_LANE {
            float4 s[WIDTH] = {};
            for (int k = 4 * lane; k < size; k += 4 * LANES) {
                float4 x = load4(f + base + k);
#pragma unroll
                for (int j = 0; j < WIDTH; ++j)
                    if (j < rows) {
                        const float4 y = load4(q + j * stride + base + k);
                        x = {x.x - factor[j] * y.x, x.y - factor[j] * y.y, x.z - factor[j] * y.z,
                             x.w - factor[j] * y.w};
                    }
                store4(f + base + k, x);
#pragma unroll
                for (int j = 0; j < WIDTH; ++j)
                    if (j < rows) add(s[j], x, load4(q + j * stride + base + k));
            }
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) lanes[j * LANES + lane] = whole(s[j]);
        }
        fold(lanes, WIDTH, 1);
        EACH_LANE {
            if (lane < WIDTH) after[int64_t(t) * WIDTH + lane] = lanes[lane * LANES];
        }
        BARRIER;
    }
}

}  // namespace

// Each launches one kernel of `programs` blocks on `stream` and returns cudaGetLastError(). metric, given and where may
// be null; width is 2, 4, 8 or 16.
extern "C" {

int qunlearn_dots(const float* f, const float* r, const float* metric, const int32_t* table, double* sums, int tiles,
                  int programs, void* stream) {
    const auto kernel = metric != nullptr ? dot_partials<true> : dot_partials<false>;
    LAUNCH(kernel, f, r, metric, table, sums, tiles);
}

int qunlearn_update(float* f, const float* r, const float* metric, const int32_t* table, const int32_t* first,
                    const double* sums, double* after, const double* given, const int64_t* where, int tiles, int units,
                    double eps, int conflict, float lr, float lam, float share_r, float share_old, int aligned,
                    int programs, void* stream) {
    const auto kernel = metric != nullptr ? project_update<true> : project_update<false>;
    const Step step = {where, lr, lam, share_r, share_old, aligned};
    LAUNCH(kernel, f, r, metric, table, first, sums, after, given, step, tiles, units, eps, conflict);
}

int qunlearn_basis_dots(const float* f, const float* q, int64_t stride, const int32_t* table, double* sums, int tiles,
                        int rows, int width, int programs, void* stream) {
    const auto kernel = width == 2   ? basis_partials<2>
                        : width == 4 ? basis_partials<4>
                        : width == 8 ? basis_partials<8>
                                     : basis_partials<16>;
    LAUNCH(kernel, f, q, stride, table, sums, tiles, rows);
}

int qunlearn_basis_update(float* f, const float* q, int64_t stride, const int32_t* table, const int32_t* first,
                          const double* sums, double* after, int tiles, int rows, int width, int programs,
                          void* stream) {
    const auto kernel = width == 2   ? basis_update<2>
                        : width == 4 ? basis_update<4>
                        : width == 8 ? basis_update<8>
                                     : basis_update<16>;
    LAUNCH(kernel, f, q, stride, table, first, sums, after, tiles, rows);
}

}  // extern "C"
