// Runs translated kernels on the CPU. The threads of a block are fibres: each runs until a barrier,
// where the next one takes its turn. The blocks of a cluster run one after the other until they wait for one
// another; from there on they must not use shared memory, which they have in common here.
#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <setjmp.h>
#include <tuple>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __shared__
#define __align__(n)
#define __forceinline__ inline
#define __launch_bounds__(...)

struct Index { unsigned x, y, z; };
static Index threadIdx, blockIdx;

static float rsqrtf(float v) { return 1.0f / sqrtf(v); }
static float __int_as_float(int bits) { float v; memcpy(&v, &bits, 4); return v; }
static float __uint_as_float(unsigned bits) { float v; memcpy(&v, &bits, 4); return v; }
static int __float2int_rz(float v) { return v != v ? 0 : v >= 2147483647.0f ? 2147483647 : v <= -2147483648.0f ? -2147483647 - 1 : (int)v; }
static unsigned __float2uint_rz(float v) { return !(v > 0.0f) ? 0u : v >= 4294967295.0f ? 4294967295u : (unsigned)v; }
template <class T> static T __shfl_sync(unsigned, T v, unsigned) { abort(); return v; }

// A fibre stays for all blocks. It is begun as a context, and from then on goes on with `_longjmp`, which, other than
// `swapcontext`, is no call of the system.
struct Fibre {
    ucontext_t context;
    jmp_buf here;
    Index thread;
    bool begun = false, done = false, joining = false;
    std::unique_ptr<char[]> stack;
};
static jmp_buf scheduler;
static Fibre* current;
static const std::function<void()>* kernel_of_block;

static void __syncthreads() {
    if (!_setjmp(current->here)) _longjmp(scheduler, 1);
}

static void enter() {
    for (;;) {
        (*kernel_of_block)();
        current->done = true;
        __syncthreads();
    }
}

// Runs a fibre until its next barrier.
static void go_on(Fibre& fibre) {
    current = &fibre;
    threadIdx = fibre.thread;
    if (_setjmp(scheduler)) return;
    if (fibre.begun) _longjmp(fibre.here, 1);
    fibre.begun = true;
    const size_t stack = 256 << 10;
    fibre.stack.reset(new char[stack]);
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.get();
    fibre.context.uc_stack.ss_size = stack;
    makecontext(&fibre.context, enter, 0);
    setcontext(&fibre.context);
}

// They stay where they are when there are more.
static std::deque<Fibre> fibres;

// Runs a block's fibres until all have ended or wait for the cluster.
static void run_block(const Index& block, size_t first, size_t count) {
    blockIdx = block;
    for (bool alive = true; alive;) {
        alive = false;
        // Backwards, so that a missing barrier shows: nothing that a later thread needs of an
        // earlier one is there yet.
        for (size_t f = first + count; f-- > first;) {
            if (fibres[f].done || fibres[f].joining) continue;
            go_on(fibres[f]);
            alive |= !fibres[f].done;
        }
    }
}

// Backwards as well: the first one's sums are there last.
static void run_cluster(const Index& first, unsigned blocks, const Index& threads, const std::function<void()>& kernel) {
    kernel_of_block = &kernel;
    const size_t count = threads.x * threads.y * threads.z;
    while (fibres.size() < blocks * count) fibres.emplace_back();
    size_t i = 0;
    for (unsigned block = 0; block < blocks; block++)
        for (unsigned z = 0; z < threads.z; z++)
            for (unsigned y = 0; y < threads.y; y++)
                for (unsigned x = 0; x < threads.x; x++) {
                    Fibre& fibre = fibres[i++];
                    fibre.thread = {x, y, z};
                    fibre.done = fibre.joining = false;
                }
    for (int turn = 0; turn < 2; turn++) {
        for (unsigned b = blocks; b-- > 0;) run_block({first.x, first.y, first.z + b}, b * count, count);
        for (size_t f = 0; f < blocks * count; f++) fibres[f].joining = false;
    }
}

template <class P, class... B, size_t... I>
static void run_with(void (*kernel)(P, unsigned, B...), std::index_sequence<I...>, const unsigned* grid,
                     unsigned cluster, const unsigned* threads, const void* params, void** buffers) {
    const std::function<void()> call = [&] {
        kernel(*(const std::remove_const_t<P>*)params, 0, (B)buffers[I]...);
    };
    for (unsigned z = 0; z < grid[2]; z += cluster)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++)
                run_cluster({x, y, z}, cluster, {threads[0], threads[1], threads[2]}, call);
}

template <class P, class... B>
static void run(void (*kernel)(P, unsigned, B...), const unsigned* grid, unsigned cluster, const unsigned* threads,
                const void* params, void** buffers) {
    run_with(kernel, std::index_sequence_for<B...>(), grid, cluster, threads, params, buffers);
}
