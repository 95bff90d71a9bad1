#include "engine-fixture.h"
#include "engine-state.h"
#include "model-checksums.h"
#include "model-watch.h"

#include <cstring>
#include <fcntl.h>
#include <sys/stat.h>

// With the file's times as they were, as a failing disk would do it.
static void flip(const std::string & path, uint64_t at) {
    struct stat before;
    const int fd = open(path.c_str(), O_RDWR);
    CHECK_EQUAL(fstat(fd, &before), 0);
    char byte = 0;
    CHECK_EQUAL(pread(fd, &byte, 1, off_t(at)), 1);
    byte = char(byte ^ 0x20);
    CHECK_EQUAL(pwrite(fd, &byte, 1, off_t(at)), 1);
    const timespec times[] = {before.st_atim, before.st_mtim};
    CHECK_EQUAL(futimens(fd, times), 0);
    close(fd);
}

static engine_status generate(engine * e, std::string & text, bool cold = true) {
    generate_request request;
    request.request_id = "x";
    request.prompt = {5, 300, 2000, 17, 4000};
    request.max_tokens = 24;
    request.cold_cache = cold;
    text.clear();
    generate_result result;
    return engine_generate(e, request, [&](const engine_step & step) { text.append(reinterpret_cast<const char *>(step.text), step.text_bytes); }, result);
}

static engine_open_options verified(const std::string & path) {
    engine_open_options o = options_of(path, spec_of(0.2, 12));
    o.verify = true;
    return o;
}

static void fails_a_request_on_a_damaged_expert(const std::string & packed, const model_file & file) {
    engine * plain = open_engine(options_of(MODEL, spec_of(0.2, 12)));
    engine * e = open_engine(verified(packed));
    std::string expected, text;
    REQUIRE_OK(generate(plain, expected));
    REQUIRE_OK(generate(e, text));
    CHECK(text == expected);

    // Every expert of one layer, so that whichever is selected first is named.
    const expert_matrix & m = file.layers[3].matrices[1];
    for (uint64_t expert = 0; expert < 32; expert++) flip(packed, m.offset + expert * m.expert_bytes + 7777);
    for (int attempt = 0; attempt < 2; attempt++) {
        const engine_status status = generate(e, text, attempt == 0);
        CHECK_EQUAL(status.code, ENGINE_IO);
        CHECK(strncmp(status.message, "blk.3 expert ", 13) == 0 && strstr(status.message, ": checksum mismatch in ") != nullptr);
    }
    engine_counters counters;
    REQUIRE_OK(engine_get_counters(e, counters));
    CHECK_EQUAL(counters.layers[3].resident, 0);
    for (uint64_t expert = 0; expert < 32; expert++) flip(packed, m.offset + expert * m.expert_bytes + 7777);
    REQUIRE_OK(generate(e, text));
    CHECK(text == expected);

    // Batched, through the virtual cache, the same reads are verified.
    flip(packed, m.offset + 100);
    evaluate_request request;
    request.tokens = text_tokens(plain, "wikitext.txt", 4000);
    request.tokens.resize(257);
    request.context = 256;
    request.spec = spec_of(0.2, 12);
    evaluate_result result;
    REQUIRE_OK(engine_drop_cache(e));
    const engine_status status = engine_evaluate(e, request, nullptr, result);
    CHECK_EQUAL(status.code, ENGINE_IO);
    CHECK(strncmp(status.message, "blk.3 expert 0: checksum mismatch", 33) == 0);
    flip(packed, m.offset + 100);
    engine_free(plain);
    engine_free(e);
}

// In parts of no matter which size; the expert's bytes are in memory.
static engine_status verified_in_parts(engine * e, int layer, int expert, uint64_t most, int & parts) {
    expert_digesting digesting;
    engine_status status;
    for (parts = 1;; parts++) {
        uint64_t budget = most;
        if (expert_verify_some(digesting, e->checksums, e->memory, e->file.info, layer, expert, budget, status)) return status;
        CHECK_EQUAL(budget, uint64_t(0));
    }
}

static void a_fill_passes_over_a_damaged_expert(const std::string & packed, const model_file & file) {
    const expert_matrix & m = file.layers[3].matrices[1];
    flip(packed, m.offset + 30 * m.expert_bytes + 7777);
    engine * e = open_engine(verified(packed));
    std::vector<std::vector<int32_t>> lists(file.layers.size(), {31, 30, 29});
    warm_result warmed;
    REQUIRE_OK(engine_warm(e, lists, warmed));
    CHECK_EQUAL(warmed.experts, int64_t(3 * file.layers.size() - 1));
    CHECK_EQUAL(warmed.failures, int64_t(1));
    CHECK(warmed.last_failure.find("blk.3 expert 30: checksum mismatch") == 0);
    flip(packed, m.offset + 30 * m.expert_bytes + 7777);

    const int64_t bytes = int64_t(file.layers[2].expert_bytes);
    int parts = 0;
    for (const int64_t most : {bytes, bytes - 1, int64_t(1000)}) {
        REQUIRE_OK(verified_in_parts(e, 2, 31, uint64_t(most), parts));
        CHECK_EQUAL(int64_t(parts), (bytes + most - 1) / most);
    }
    const expert_place & last = e->memory.layers[2].places[e->memory.layers[2].n_places - 1];
    last.base[32 * last.bytes - 1] ^= 1;
    CHECK_EQUAL(verified_in_parts(e, 2, 31, 1000, parts).code, ENGINE_IO);
    engine_free(e);
}

static void refuses_to_load_what_is_damaged(const std::string & packed, const model_file & file) {
    engine * e = nullptr;
    const gguf_tensor & dense = *checksums_dense_tensors(file)[40];
    flip(packed, dense.offset + dense.bytes - 1);
    engine_status status = engine_open(verified(packed), nullptr, nullptr, e);
    CHECK_EQUAL(status.code, ENGINE_IO);
    CHECK(strncmp(status.message, dense.name.c_str(), dense.name.size()) == 0 && strstr(status.message, "checksum mismatch"));
    engine * unverified = open_engine(options_of(packed, spec_of(0, 8)));
    engine_free(unverified);
    flip(packed, dense.offset + dense.bytes - 1);
    const uint64_t scores = file.header.values.at("tokenizer.ggml.scores").at;
    flip(packed, scores + 400);
    status = engine_open(verified(packed), nullptr, nullptr, e);
    CHECK_EQUAL(status.code, ENGINE_IO);
    CHECK(strncmp(status.message, "the header: checksum mismatch", 29) == 0);
    flip(packed, scores + 400);
    status = engine_open(verified(MODEL), nullptr, nullptr, e);
    CHECK_EQUAL(status.code, ENGINE_BAD_ARGUMENT);
    CHECK(strstr(status.message, "moefleet model pack") != nullptr);
    CHECK(e == nullptr);
}

static void expect_change(engine * e, const char * words) {
    std::string text;
    const engine_status status = generate(e, text, false);
    CHECK_EQUAL(status.code, ENGINE_MODEL_CHANGED);
    CHECK(strstr(status.message, words) != nullptr);
    CHECK(strstr(status.message, "load it again") != nullptr);
}

static void notices_that_the_file_changed(const temporary_folder & folder) {
    const std::string path = folder.file("watched.gguf"), aside = folder.file("aside.gguf");
    copy_file(MODEL, path);
    struct stat before;
    CHECK_EQUAL(stat(path.c_str(), &before), 0);
    engine * e = open_engine(options_of(path, spec_of(0, 8)));
    std::string expected, text;
    REQUIRE_OK(generate(e, expected));

    CHECK_EQUAL(rename(path.c_str(), aside.c_str()), 0);
    expect_change(e, "watched.gguf: removed while in use");
    copy_file(MODEL, path);
    expect_change(e, "watched.gguf: replaced by another file while in use");
    CHECK_EQUAL(rename(aside.c_str(), path.c_str()), 0);
    REQUIRE_OK(generate(e, text));  // the very file is back
    CHECK(text == expected);

    const timespec later[] = {before.st_atim, {before.st_mtim.tv_sec + 5, 0}};
    CHECK_EQUAL(utimensat(AT_FDCWD, path.c_str(), later, 0), 0);
    expect_change(e, "watched.gguf: written to while in use");
    // Cold, so that reads fail: the change is what explains it.
    CHECK_EQUAL(truncate(path.c_str(), 9000000), 0);
    REQUIRE_OK(engine_drop_cache(e));
    expect_change(e, "watched.gguf: changed while in use (size 18395232 to 9000000)");
    engine_free(e);
}

int main() {
    temporary_folder folder;
    const std::string packed = folder.file("packed.gguf");
    write_result out;
    REQUIRE_OK(engine_pack(MODEL, packed, false, nullptr, out));
    model_file file;
    REQUIRE_OK(model_file_read(packed, file));
    fails_a_request_on_a_damaged_expert(packed, file);
    a_fill_passes_over_a_damaged_expert(packed, file);
    refuses_to_load_what_is_damaged(packed, file);
    notices_that_the_file_changed(folder);
    return checks_done();
}
