// What the tests need of a framework: checks that say where they failed, a temporary folder, and copies of files.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <unistd.h>

static int checks_failed = 0;

#define CHECK(condition)                                                                \
    do {                                                                                \
        if (!(condition)) {                                                             \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);   \
            checks_failed++;                                                            \
        }                                                                               \
    } while (0)

#define CHECK_EQUAL(a, b)                                                                                                  \
    do {                                                                                                                   \
        const auto va = (a);                                                                                               \
        const auto vb = (b);                                                                                               \
        if (!(va == vb)) {                                                                                                 \
            fprintf(stderr, "%s:%d: %s is %.9g, expected %.9g\n", __FILE__, __LINE__, #a, double(va), double(vb));         \
            checks_failed++;                                                                                               \
        }                                                                                                                  \
    } while (0)

#define CHECK_NEAR(a, b, most)                                                                                             \
    do {                                                                                                                   \
        const double va = (a), vb = (b);                                                                                   \
        if (!(std::fabs(va - vb) <= (most))) {                                                                             \
            fprintf(stderr, "%s:%d: %s is %.9g, expected %.9g within %g\n", __FILE__, __LINE__, #a, va, vb, double(most)); \
            checks_failed++;                                                                                               \
        }                                                                                                                  \
    } while (0)

// The test cannot go on without it.
#define REQUIRE_OK(expression)                                                                                             \
    do {                                                                                                                   \
        const engine_status required = (expression);                                                                       \
        if (required.code != ENGINE_OK) {                                                                                  \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, engine_code_name(required.code), required.message);     \
            exit(1);                                                                                                       \
        }                                                                                                                  \
    } while (0)

struct temporary_folder {
    std::string path;
    temporary_folder() {
        char name[] = "/tmp/moefleet-test-XXXXXX";
        path = mkdtemp(name);
    }
    ~temporary_folder() {
        std::error_code error;
        std::filesystem::remove_all(path, error);
        if (error) fprintf(stderr, "%s was not removed: %s\n", path.c_str(), error.message().c_str());
    }
    std::string file(const char * name) const { return path + "/" + name; }
};

// Over the bytes of a file that is there already, which stays the same file.
[[maybe_unused]] static void copy_file(const std::string & from, const std::string & to) {
    std::error_code error;
    std::filesystem::copy_file(from, to, std::filesystem::copy_options::overwrite_existing, error);
    if (!error) return;
    fprintf(stderr, "%s cannot be copied to %s: %s\n", from.c_str(), to.c_str(), error.message().c_str());
    exit(1);
}

[[maybe_unused]] static int checks_done() {
    if (checks_failed) fprintf(stderr, "%d checks failed\n", checks_failed);
    return checks_failed ? 1 : 0;
}
