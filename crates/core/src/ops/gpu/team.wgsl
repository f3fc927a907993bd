// Reductions over the invocations of a row; every invocation gets the result.
var<workgroup> shared_values: array<f32, MEMBERS>;

fn team_sum(v: f32, thread: u32) -> f32 {
    shared_values[thread] = v;
    workgroupBarrier();
    for (var half = TEAM / 2u; half > 0u; half /= 2u) {
        if (thread % TEAM < half) {
            shared_values[thread] += shared_values[thread + half];
        }
        workgroupBarrier();
    }
    let result = shared_values[thread / TEAM * TEAM];
    workgroupBarrier();
    return result;
}

fn team_max(v: f32, thread: u32) -> f32 {
    shared_values[thread] = v;
    workgroupBarrier();
    for (var half = TEAM / 2u; half > 0u; half /= 2u) {
        if (thread % TEAM < half) {
            shared_values[thread] = max(shared_values[thread], shared_values[thread + half]);
        }
        workgroupBarrier();
    }
    let result = shared_values[thread / TEAM * TEAM];
    workgroupBarrier();
    return result;
}
