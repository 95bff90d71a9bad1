#include "log-exp.h"

#include "check.h"

#include <limits>

template <void (*OF_BLOCK)(float *)>
static float of(float x) {
    float block[LOG_EXP_BLOCK];
    for (float & each : block) each = x;
    OF_BLOCK(block);
    CHECK_EQUAL(block[0], block[LOG_EXP_BLOCK - 1]);
    return block[0];
}

static float log_of(float x) { return of<log_block>(x); }
static float exp_of_float(float x) { return of<exp_block>(x); }

// In steps of a float's last place.
static double off_by(float found, double exact) {
    const float nearest = std::fabs(float(exact));
    return std::fabs(double(found) - exact) / double(std::nextafter(nearest, std::numeric_limits<float>::infinity()) - nearest);
}

static void are_right_to_the_last_place() {
    for (float x = 1e-30f; x < 1e30f; x *= 1.00013f) CHECK(off_by(log_of(x), std::log(double(x))) < 0.9);
    for (float x = 0.9f; x < 1.1f; x += 1e-6f) CHECK(off_by(log_of(x), std::log(double(x))) < 0.9);
    for (float x = -87; x < 88; x += 0.00087f) CHECK(off_by(exp_of_float(x), std::exp(double(x))) < 0.51);
}

static void of_doubles_are_right_to_two_in_the_last_place() {
    for (double x = -700; x < 700; x += 0.0137) CHECK_NEAR(exp_of(x) / std::exp(x), 1, 5e-16);
    for (double x = -0.03; x < 0.03; x += 1e-6) CHECK_NEAR(exp_of(x) / std::exp(x), 1, 5e-16);
    CHECK_EQUAL(exp_of(0), 1);
}

static void end_where_floats_do() {
    CHECK_EQUAL(log_of(1), 0);
    CHECK_EQUAL(exp_of_float(0), 1);
    CHECK_EQUAL(exp_of_float(-104), 0);
    CHECK_EQUAL(exp_of_float(-700), 0);
    CHECK(exp_of_float(-100) > 0);
}

// Each in its own place.
static void work_on_blocks() {
    float x[LOG_EXP_BLOCK];
    for (int i = 0; i < LOG_EXP_BLOCK; i++) x[i] = 0.37f * float(i + 1);
    exp_block(x);
    log_block(x);
    for (int i = 0; i < LOG_EXP_BLOCK; i++) CHECK_NEAR(x[i], 0.37 * (i + 1), 2e-6);
    double y[LOG_EXP_BLOCK];
    for (int i = 0; i < LOG_EXP_BLOCK; i++) y[i] = -0.37 * (i + 1);
    exp_doubles<LOG_EXP_BLOCK>(y);
    for (int i = 0; i < LOG_EXP_BLOCK; i++) CHECK_EQUAL(y[i], exp_of(-0.37 * (i + 1)));
}

int main() {
    are_right_to_the_last_place();
    of_doubles_are_right_to_two_in_the_last_place();
    end_where_floats_do();
    work_on_blocks();
    return checks_done();
}
