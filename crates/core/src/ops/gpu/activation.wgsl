// erf: odd series below 1, A&S-style rational times exp above; absolute error below 3e-7.
fn erf1(x: f32) -> f32 {
    let a = abs(x);
    let s = x * x;
    let small = x * (1.1283791671 + s * (-0.37612638903 + s * (0.11283791671 + s * (-0.026866170645
        + s * (0.0052239776254 + s * (-0.00085483270234 + s * (0.00012055332982
        + s * (-0.000014925650358 + s * 0.0000016462114))))))));
    let t = 1.0 / (1.0 + 0.5 * a);
    let tail = t * exp(-a * a - 1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418
        + t * (-0.18628806 + t * (0.27886807 + t * (-1.13520398 + t * (1.48851587
        + t * (-0.82215223 + t * 0.17087277)))))))));
    return select(sign(x) * (1.0 - tail), small, a < 1.0);
}
fn erf4(x: vec4<f32>) -> vec4<f32> {
    let a = abs(x);
    let s = x * x;
    let small = x * (1.1283791671 + s * (-0.37612638903 + s * (0.11283791671 + s * (-0.026866170645
        + s * (0.0052239776254 + s * (-0.00085483270234 + s * (0.00012055332982
        + s * (-0.000014925650358 + s * 0.0000016462114))))))));
    let t = 1.0 / (1.0 + 0.5 * a);
    let tail = t * exp(-a * a - 1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418
        + t * (-0.18628806 + t * (0.27886807 + t * (-1.13520398 + t * (1.48851587
        + t * (-0.82215223 + t * 0.17087277)))))))));
    return select(sign(x) * (1.0 - tail), small, a < vec4<f32>(1.0));
}
// tanh that does not overflow for large arguments.
fn tanh1(x: f32) -> f32 {
    let e = exp(-2.0 * abs(x));
    return sign(x) * (1.0 - e) / (1.0 + e);
}
fn tanh4(x: vec4<f32>) -> vec4<f32> {
    let e = exp(-2.0 * abs(x));
    return sign(x) * (1.0 - e) / (1.0 + e);
}
// ln(1 + exp(x)) without overflow.
fn softplus1(x: f32) -> f32 {
    return max(x, 0.0) + log(1.0 + exp(-abs(x)));
}
fn softplus4(x: vec4<f32>) -> vec4<f32> {
    return max(x, vec4<f32>(0.0)) + log(1.0 + exp(-abs(x)));
}
