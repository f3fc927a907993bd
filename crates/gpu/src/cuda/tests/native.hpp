// Takes the place of native.cuh on the CPU. What a warp does together: each lane leaves its part and waits, as at a barrier,
// before it reads the others'; two places in turn, so that nobody waits twice. Copies on the side are made when they are waited
// for, so that a missing wait shows.
struct Part { vec4<u32> a; u32 low, high; vec4<f32> v; const vec4<u32>* row; };
static Part parts[2][1024];
static unsigned turns[1024];

// The warp's parts.
static const Part* exchange_parts(const Part& own) {
    const unsigned thread = threadIdx.x;
    Part* all = parts[turns[thread]++ % 2];
    all[thread] = own;
    __syncthreads();
    return all + thread / 32 * 32;
}

static void native_join() {
    current->joining = true;
    __syncthreads();
}

static u32 round_tf32(f32 v) {
    u32 bits; memcpy(&bits, &v, 4);
    return std::isfinite(v) ? (bits + 0x1000u) & ~0x1fffu : bits;
}
static vec4<u32> native_round_tf32(vec4<f32> v) { return {round_tf32(v.x), round_tf32(v.y), round_tf32(v.z), round_tf32(v.w)}; }
static u32 pack_half(f32 low, f32 high) { return half_of(low) | half_of(high) << 16; }
static vec4<u32> native_pack_half(vec4<f32> low, vec4<f32> high) {
    return {pack_half(low.x, low.y), pack_half(low.z, low.w), pack_half(high.x, high.y), pack_half(high.z, high.w)};
}

// Element `k` of a row of a (8 words' quarter by quarter) or a column of b.
template <bool half> static f32 element(u32 low, u32 high, u32 k) {
    const u32 word = k < (half ? 8 : 4) ? low : high;
    return half ? of_half(k % 2 ? word >> 16 : word) : of_bits(word);
}
template <bool half> static vec4<f32> multiply(vec4<u32> a, u32 low, u32 high, vec4<f32> sum) {
    const Part* warp = exchange_parts({a, low, high, {}, nullptr});
    const u32 lane = threadIdx.x % 32, row = lane / 4, depth = half ? 16 : 8, words = half ? 2 : 1;
    f32* own = &sum.x;
    for (u32 i = 0; i < 4; i++) {
        const u32 column = lane % 4 * 2 + i % 2;
        for (u32 k = 0; k < depth; k++) {
            const Part &left = warp[row * 4 + k / words % 4], &right = warp[column * 4 + k / words % 4];
            const f32 x = i < 2 ? element<half>(left.a.x, left.a.z, k) : element<half>(left.a.y, left.a.w, k);
            own[i] += x * element<half>(right.low, right.high, k);
        }
    }
    return sum;
}
static vec4<f32> native_multiply_tf32(vec4<u32> a, u32 low, u32 high, vec4<f32> sum) { return multiply<false>(a, low, high, sum); }
static vec4<f32> native_multiply_half(vec4<u32> a, u32 low, u32 high, vec4<f32> sum) { return multiply<true>(a, low, high, sum); }
static vec4<f32> native_exchange(vec4<f32> v) {
    const u32 lane = threadIdx.x % 32;
    const vec4<f32> other = exchange_parts({{}, 0, 0, v, nullptr})[lane ^ 1].v;
    if (lane % 2) return {other.z, other.w, v.z, v.w};
    return {v.x, v.y, other.x, other.y};
}
static f32 native_quad_max(f32 v) {
    const Part* quad = exchange_parts({{}, 0, 0, splat(v), nullptr}) + threadIdx.x % 32 / 4 * 4;
    return fmaxf(fmaxf(quad[0].v.x, quad[1].v.x), fmaxf(quad[2].v.x, quad[3].v.x));
}
static f32 native_quad_sum(f32 v) {
    const Part* quad = exchange_parts({{}, 0, 0, splat(v), nullptr}) + threadIdx.x % 32 / 4 * 4;
    return (quad[0].v.x + quad[1].v.x) + (quad[2].v.x + quad[3].v.x);
}
static vec4<u32> native_bits(vec4<f32> v) { vec4<u32> bits; memcpy(&bits, &v, sizeof v); return bits; }
static vec4<f32> native_numbers(vec4<u32> v) { vec4<f32> numbers; memcpy(&numbers, &v, sizeof v); return numbers; }
static vec4<u32> load_matrices(const vec4<u32>* row) {
    const Part* warp = exchange_parts({{}, 0, 0, {}, row});
    const u32 lane = threadIdx.x % 32;
    vec4<u32> r;
    for (u32 i = 0; i < 4; i++) (&r.x)[i] = (&warp[8 * i + lane / 4].row->x)[lane % 4];
    return r;
}
static vec4<u32> load_turned(const vec4<u32>* row) {
    const Part* warp = exchange_parts({{}, 0, 0, {}, row});
    const u32 lane = threadIdx.x % 32;
    vec4<u32> r;
    for (u32 i = 0; i < 4; i++) {
        const unsigned short* rows[2];
        for (u32 k = 0; k < 2; k++) rows[k] = (const unsigned short*)warp[8 * i + lane % 4 * 2 + k].row;
        (&r.x)[i] = rows[0][lane / 4] | (u32)rows[1][lane / 4] << 16;
    }
    return r;
}

// Four warps together. A place is a pointer in two words; products are made when they are waited for, so that a missing wait
// shows.
static vec4<u32> shared_place(const vec4<u32>* p) { const size_t bits = (size_t)p; return {(u32)bits, (u32)(bits >> 32), 0, 0}; }
// A left side in shared memory has lines; otherwise it is in `a`.
struct Product { std::vector<vec4<f32>*> sums; vec4<u32> a[4]; const vec4<u32>*lines, *b; u32 step, line; bool half; };
static std::deque<std::vector<Product>> products[1024];
static std::vector<Product> begun[1024];
// Element `k` of a line.
static f32 line_element(const vec4<u32>* lines, u32 line, u32 step, u32 k, bool half, u32 chunks = 4) {
    const u32 chunk = k / (half ? 8 : 4), word = k % (half ? 8 : 4) / (half ? 2 : 1), turn = chunks == 4 ? line / 2 % 4 : line % 8;
    const u32 bits = (&lines[line * chunks + ((2 * step + chunk) ^ turn)].x)[word];
    return half ? of_half(k % 2 ? bits >> 16 : bits) : of_bits(bits);
}
static void native_group_start() {}
static void native_group_publish() {}
static void native_group_take(vec4<u32>&, vec4<u32>&) {}
static void native_group_end() {
    products[threadIdx.x].push_back(std::move(begun[threadIdx.x]));
    begun[threadIdx.x].clear();
}
static void finish_products(size_t but) {
    const u32 lane = threadIdx.x % 32;
    for (auto& queue = products[threadIdx.x]; queue.size() > but; queue.pop_front())
        for (const Product& p : queue.front())
            for (u32 j = 0; j < 4 * p.sums.size(); j++) {
                const u32 column = j / 4 * 8 + lane % 4 * 2 + j % 2, words = p.half ? 2 : 1;
                f32& sum = (&p.sums[j / 4]->x)[j % 4];
                for (u32 k = 0; k < 8 * words; k++) {
                    const vec4<u32>& a = p.a[k / words % 4];
                    const u32 row = threadIdx.x / 32 % 4 * 16 + lane / 4 + j % 4 / 2 * 8;
                    const f32 x = p.lines ? line_element(p.lines, row, p.step, k, true, p.line)
                                : j % 4 < 2 ? (p.half ? element<true>(a.x, a.z, k) : element<false>(a.x, a.z, k))
                                            : (p.half ? element<true>(a.y, a.w, k) : element<false>(a.y, a.w, k));
                    sum += x * line_element(p.b, column, p.step, k, p.half, p.line);
                }
            }
}
static void native_group_wait() { finish_products(0); }
static void native_group_wait_but_one() { finish_products(1); }
static const vec4<u32>* lines_at(vec4<u32> place) { return (const vec4<u32>*)((size_t)place.x | (size_t)place.y << 32); }
template <size_t... I, class T> static void keep_lines(std::index_sequence<I...>, T all) {
    const size_t count = sizeof...(I);
    begun[threadIdx.x].push_back({{&std::get<I>(all)...}, {}, lines_at(std::get<count>(all)), lines_at(std::get<count + 1>(all)), std::get<count + 2>(all), 8, true});
}
template <size_t... I, class T> static void keep_product(std::index_sequence<I...>, T all, bool half) {
    const size_t count = sizeof...(I);
    Product p = {{&std::get<I>(all)...}, {}, nullptr, lines_at(std::get<count + 1>(all)), std::get<count + 2>(all), 4, half};
    // The parts of the same rows.
    const Part* quad = exchange_parts({std::get<count>(all), 0, 0, {}, nullptr}) + threadIdx.x % 32 / 4 * 4;
    for (u32 i = 0; i < 4; i++) p.a[i] = quad[i].a;
    begun[threadIdx.x].push_back(std::move(p));
}
#define GROUP(n) \
    template <class... T> static void native_group_hold_##n(T&&...) {} \
    template <class... T> static void native_group_multiply_tf32_##n(T&&... all) { keep_product(std::make_index_sequence<n / 8>(), std::forward_as_tuple(all...), false); } \
    template <class... T> static void native_group_multiply_half_##n(T&&... all) { keep_product(std::make_index_sequence<n / 8>(), std::forward_as_tuple(all...), true); } \
    template <class... T> static void native_group_multiply_lines_##n(T&&... all) { keep_lines(std::make_index_sequence<n / 8>(), std::forward_as_tuple(all...)); }
GROUP(32)
GROUP(64)
GROUP(96)
GROUP(128)
GROUP(192)
GROUP(256)

// Copies on the side, together those up to native_end_copies.
static std::deque<std::vector<std::function<void()>>> copies[1024];
static std::vector<std::function<void()>> begun_copies[1024];
template <class T> static void copy_async(vec4<T>* to, const vec4<T>* from) {
    begun_copies[threadIdx.x].push_back([=] { *to = *from; });
}
static void native_end_copies() {
    copies[threadIdx.x].push_back(std::move(begun_copies[threadIdx.x]));
    begun_copies[threadIdx.x].clear();
}
static void finish_copies(size_t but) {
    for (auto& queue = copies[threadIdx.x]; queue.size() > but; queue.pop_front())
        for (auto& copy : queue.front()) copy();
}
static void native_wait_copies() { native_end_copies(); finish_copies(0); }
static void native_wait_copies_but_1() { finish_copies(1); }
static void native_wait_copies_but_2() { finish_copies(2); }
static void native_wait_copies_but_3() { finish_copies(3); }
static void native_wait_copies_but_4() { finish_copies(4); }
static void native_wait_copies_but_5() { finish_copies(5); }
