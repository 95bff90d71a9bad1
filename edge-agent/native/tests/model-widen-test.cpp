#include "engine-fixture.h"
#include "model-file.h"

#include <cstring>
#include <sys/stat.h>

static double cross_entropy(const std::string & path, double & miss_rate) {
    engine * e = open_engine(options_of(path, spec_of(0.2, 12)));
    evaluate_request request;
    const std::vector<int32_t> text = text_tokens(e, "wikitext.txt", 8000);
    request.tokens.assign(text.begin(), text.begin() + 513);
    request.context = 256;
    request.spec = spec_of(0.2, 12);
    evaluate_result result;
    REQUIRE_OK(engine_evaluate(e, request, nullptr, result));
    engine_free(e);
    miss_rate = result.miss_rate;
    return result.cross_entropy;
}

static widen_options to_width(int64_t width) {
    widen_options o;
    o.width = width;
    return o;
}

static void does_the_same(const std::string & source, const std::string & wide) {
    double miss_narrow = 0, miss_wide = 0;
    const double narrow = cross_entropy(source, miss_narrow), widened = cross_entropy(wide, miss_wide);
    printf("cross-entropy %.9f, widened %.9f\n", narrow, widened);
    CHECK_NEAR(widened, narrow, 1e-6);
    CHECK_NEAR(miss_wide, miss_narrow, 1e-9);
}

static void widens_to_a_width(const std::string & wide) {
    int64_t last = 0;
    const progress_callback watch = [&](int64_t done, int64_t total) {
        CHECK(done >= last && done <= total);
        last = done;
        return true;
    };
    widen_result out;
    REQUIRE_OK(engine_widen(MODEL, wide, to_width(544), watch, out));
    CHECK_EQUAL(uint64_t(last), out.file.bytes);
    CHECK_EQUAL(out.width, 544);
    model_file file;
    REQUIRE_OK(model_file_read(wide, file));
    CHECK_EQUAL(file.info.file_bytes, out.file.bytes);
    CHECK_EQUAL(file.info.alignment, 4096u);
    CHECK_EQUAL(file.info.expert_bytes[0], 3u * 192 * 544 / 32 * 34);
    struct stat info;
    CHECK_EQUAL(stat(wide.c_str(), &info), 0);
    CHECK(uint64_t(info.st_blocks) * 512 >= out.file.bytes);  // no holes
    does_the_same(MODEL, wide);
    check_result checked;
    REQUIRE_OK(engine_check(wide, nullptr, checked));
    CHECK_EQUAL(checked.damaged_count, 0u);
}

// Rows of 192 values in q8_0 are 204 bytes: whole pages come at multiples of 1,024.
static void widens_to_a_size(const temporary_folder & folder) {
    const std::string wide = folder.file("sized.gguf");
    widen_options options;
    widen_result out;
    options.expert_bytes = 700 << 10;
    REQUIRE_OK(engine_widen(MODEL, wide, options, nullptr, out));
    CHECK_EQUAL(out.width, 2048);
    model_file file;
    REQUIRE_OK(model_file_read(wide, file));
    for (const auto & layer : file.layers) {
        for (const auto & m : layer.matrices) CHECK_EQUAL(m.offset % 4096 + m.expert_bytes % 4096, 0u);
    }
    options.replace = true;
    options.expert_bytes = 0;
    options.total_bytes = 100 << 20;
    REQUIRE_OK(engine_widen(MODEL, wide, options, nullptr, out));
    CHECK_EQUAL(out.width, 1024);
    options.total_bytes = uint64_t(1) << 60;
    CHECK_EQUAL(engine_widen(MODEL, wide, options, nullptr, out).code, ENGINE_BAD_ARGUMENT);
}

int main() {
    temporary_folder folder;
    const std::string wide = folder.file("wide.gguf");
    widens_to_a_width(wide);
    widens_to_a_size(folder);

    widen_result out;
    CHECK_EQUAL(engine_widen(MODEL, wide, to_width(544), nullptr, out).code, ENGINE_BAD_ARGUMENT);  // exists
    const std::string other = folder.file("other.gguf");
    CHECK_EQUAL(engine_widen(MODEL, other, to_width(550), nullptr, out).code, ENGINE_BAD_ARGUMENT);
    CHECK_EQUAL(engine_widen(MODEL, other, to_width(128), nullptr, out).code, ENGINE_BAD_ARGUMENT);
    CHECK_EQUAL(engine_widen(MODEL, other, widen_options(), nullptr, out).code, ENGINE_BAD_ARGUMENT);
    CHECK_EQUAL(engine_widen(FIXTURES "/code.txt", other, to_width(544), nullptr, out).code, ENGINE_MODEL_FORMAT);
    CHECK_EQUAL(engine_widen(MODEL, other, to_width(2048), [](int64_t, int64_t) { return false; }, out).code, ENGINE_CANCELLED);
    CHECK(access(other.c_str(), F_OK) != 0);  // never half a file under its name
    REQUIRE_OK(engine_widen(MODEL, other, to_width(2048), nullptr, out));
    CHECK(out.file.kept > 0);
    return checks_done();
}
