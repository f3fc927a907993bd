// y = a b in square tiles: a's tile transposed, so that four rows are one vec4.
var<workgroup> tile_a: array<f32, STEP * TILE>;
var<workgroup> tile_b: array<vec4<f32>, STEP * ACROSS>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let z = group.z;
    let row0 = group.y * TILE;
    let col0 = group.x * ACROSS;
    let down = thread / ACROSS;
    let across = thread % ACROSS;
    var s0 = vec4<f32>();
    var s1 = vec4<f32>();
    var s2 = vec4<f32>();
    var s3 = vec4<f32>();
    for (var k0 = 0u; k0 < p.rows_b; k0 += STEP) {
        for (var i = thread; i < TILE * STEP / 4u; i += THREADS) {
            let row = i / (STEP / 4u);
            let k = i % (STEP / 4u);
            let v = load_a(row0 + row, k0 / 4u + k, z);
            for (var j = 0u; j < 4u; j++) {
                tile_a[(k * 4u + j) * TILE + row] = v[j];
            }
        }
        for (var i = thread; i < STEP * ACROSS; i += THREADS) {
            let k = k0 + i / ACROSS;
            let col = col0 + i % ACROSS;
            var v = vec4<f32>();
            if (k < p.rows_b && col < p.n4) {
                v = load_b(k, col, z);
            }
            tile_b[i] = v;
        }
        workgroupBarrier();
        for (var k = 0u; k < STEP; k++) {
            let bv = tile_b[k * ACROSS + across];
            let at = k * TILE + down * 4u;
            s0 += tile_a[at] * bv;
            s1 += tile_a[at + 1u] * bv;
            s2 += tile_a[at + 2u] * bv;
            s3 += tile_a[at + 3u] * bv;
        }
        workgroupBarrier();
    }
    let row = row0 + down * 4u;
    let col = col0 + across;
    store(row, col, z, s0);
    store(row + 1u, col, z, s1);
    store(row + 2u, col, z, s2);
    store(row + 3u, col, z, s3);
}
