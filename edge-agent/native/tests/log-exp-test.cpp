#include "log-exp.h"

#include "check.h"

static void are_right_to_a_few_in_ten_million() {
    for (float x = 1e-30f; x < 1e30f; x *= 1.00013f) CHECK_NEAR(quick_log(x), std::log(double(x)), 1e-7 + 2e-7 * std::fabs(std::log(double(x))));
    for (float x = 0.9f; x < 1.1f; x += 1e-6f) CHECK_NEAR(quick_log(x), std::log(double(x)), 5e-8);
    for (float x = -87; x < 88; x += 0.00087f) CHECK_NEAR(quick_exp(x) / std::exp(double(x)), 1, 2e-7);
}

static void of_doubles_are_right_to_two_in_the_last_place() {
    for (double x = -700; x < 700; x += 0.0137) CHECK_NEAR(exp_of(x) / std::exp(x), 1, 5e-16);
    for (double x = -0.03; x < 0.03; x += 1e-6) CHECK_NEAR(exp_of(x) / std::exp(x), 1, 5e-16);
}

static void are_exact_where_nothing_is_far() {
    CHECK_EQUAL(quick_log(1), 0);
    CHECK_EQUAL(quick_exp(0), 1);
    CHECK_EQUAL(exp_of(0), 1);
}

int main() {
    are_right_to_a_few_in_ten_million();
    are_exact_where_nothing_is_far();
    of_doubles_are_right_to_two_in_the_last_place();
    return checks_done();
}
