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

int main() {
    temporary_folder folder;
    const std::string wide = folder.file("wide.gguf");
    uint64_t bytes = 0;
    int64_t last = 0;
    const progress_callback watch = [&](int64_t done, int64_t total) {
        CHECK(done >= last && done <= total);
        last = done;
        return true;
    };
    REQUIRE_OK(engine_widen(MODEL, wide, 544, watch, bytes));
    CHECK_EQUAL(uint64_t(last), bytes);

    model_file file;
    REQUIRE_OK(model_file_read(wide, file));
    CHECK_EQUAL(file.info.file_bytes, bytes);
    CHECK_EQUAL(file.info.alignment, 4096u);
    CHECK_EQUAL(file.info.expert_bytes[0], 3u * 192 * 544 / 32 * 34);
    struct stat info;
    CHECK_EQUAL(stat(wide.c_str(), &info), 0);
    CHECK(uint64_t(info.st_blocks) * 512 >= bytes);  // no holes

    double miss_narrow = 0, miss_wide = 0;
    const double narrow = cross_entropy(MODEL, miss_narrow), widened = cross_entropy(wide, miss_wide);
    printf("cross-entropy %.9f, widened %.9f\n", narrow, widened);
    CHECK_NEAR(widened, narrow, 1e-6);
    CHECK_NEAR(miss_wide, miss_narrow, 1e-9);

    CHECK_EQUAL(engine_widen(MODEL, wide, 544, watch, bytes).code, ENGINE_BAD_ARGUMENT);  // exists
    const std::string other = folder.file("other.gguf");
    CHECK_EQUAL(engine_widen(MODEL, other, 550, watch, bytes).code, ENGINE_BAD_ARGUMENT);
    CHECK_EQUAL(engine_widen(MODEL, other, 128, watch, bytes).code, ENGINE_BAD_ARGUMENT);
    CHECK_EQUAL(engine_widen(FIXTURES "/code.txt", other, 544, watch, bytes).code, ENGINE_MODEL_FORMAT);
    CHECK_EQUAL(engine_widen(MODEL, other, 2048, [](int64_t, int64_t) { return false; }, bytes).code, ENGINE_CANCELLED);
    CHECK(access(other.c_str(), F_OK) != 0);  // an unfinished file is removed
    return checks_done();
}
