// Experts that pass through memory, where that goes wrong: a read that fails and a request that is cancelled in the middle of
// a layer. What streaming computes, reads and holds otherwise is generation-test's and architecture-test's.
#include "engine-fixture.h"
#include "engine-state.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <fcntl.h>
#include <thread>
#include <unistd.h>

static const int64_t EXPERT = 78336;

struct outcome {
    engine_status status;
    std::vector<int32_t> tokens;
    generate_result result;
};

static outcome generate(engine * e, const std::vector<int32_t> & prompt, bool cold) {
    generate_request request;
    request.request_id = "test";
    request.prompt = prompt;
    request.max_tokens = 8;
    request.cold_cache = cold;
    outcome out;
    out.status = engine_generate(e, request, [&](const engine_step & s) {
        if (s.token >= 0) out.tokens.push_back(s.token);
    }, out.result);
    return out;
}

// What is in memory are the members of the cache, whole.
static void memory_holds_the_members(engine * e) {
    int64_t members = 0;
    for (int l = 0; l < e->layers.count; l++) {
        const layer_memory & memory = e->memory.layers[size_t(l)];
        for (size_t x = 0; x < 32; x++) {
            const bool member = e->layers[l].cache.resident[x];
            CHECK_EQUAL(bool(memory.present[x]), member);
            CHECK_EQUAL(int(memory.held[x]), member ? 7 : 0);
            members += member;
        }
    }
    CHECK_EQUAL(e->memory.resident_bytes.load(), members * EXPERT);
    CHECK_EQUAL(e->memory.passing_bytes, int64_t(0));
}

static engine * open_bounded(int capacity) {
    engine_open_options options = options_of(MODEL, spec_of(0, capacity));
    options.prefill_bytes = 1;
    return open_engine(options);
}

// The file that the lanes read ends early, in each layer's matrices in turn; the model's own stays as it is.
static void a_failed_read_fails_the_request_and_nothing_else() {
    temporary_folder folder;
    engine * e = open_bounded(8);
    const std::vector<int32_t> prompt = text_tokens(e, "wikitext.txt", 400);
    const outcome expected = generate(e, prompt, true);
    REQUIRE_OK(expected.status);
    const int fd = e->reader.files.files[0].fd, whole = dup(fd);
    int failed_requests = 0;
    for (int layer = 0; layer < 6; layer++) {
        for (const expert_matrix & m : e->file.layers[size_t(layer)].matrices) {
            const std::string cut = folder.file("cut.gguf");
            copy_file(MODEL, cut);
            CHECK_EQUAL(truncate(cut.c_str(), off_t(position_offset(m.offset) + 17 * m.expert_bytes + 100)), 0);
            const int shorter = open(cut.c_str(), O_RDONLY | O_CLOEXEC);
            CHECK(dup2(shorter, fd) == fd);
            close(shorter);
            const outcome r = generate(e, prompt, layer % 2 == 0);
            failed_requests += r.status.code == ENGINE_IO;
            CHECK(r.status.code == ENGINE_IO || r.status.code == ENGINE_OK);
            if (r.status.code == ENGINE_IO) CHECK(strstr(r.status.message, "the file ended early") != nullptr);
            memory_holds_the_members(e);
            CHECK(dup2(whole, fd) == fd);
        }
    }
    CHECK(failed_requests >= 15);
    close(whole);
    const outcome again = generate(e, prompt, false);
    REQUIRE_OK(again.status);
    CHECK(again.tokens == expected.tokens);
    engine_free(e);
}

static void a_cancelled_prompt_leaves_whole_members() {
    engine * e = open_bounded(8);
    const std::vector<int32_t> prompt = text_tokens(e, "wikitext.txt", 1200);
    const outcome expected = generate(e, prompt, true);
    REQUIRE_OK(expected.status);
    int cancelled = 0;
    for (int round = 0; round < 40; round++) {
        std::atomic<bool> over{false};
        std::thread other([&] {
            const auto pause = std::chrono::nanoseconds(expected.result.prefill_ns * round / 40);
            std::this_thread::sleep_for(pause);
            while (!over && !engine_cancel(e, "test")) std::this_thread::yield();
        });
        const outcome r = generate(e, prompt, round % 3 == 0);
        over = true;
        other.join();
        REQUIRE_OK(r.status);
        cancelled += r.result.finish == FINISH_CANCELLED && r.tokens.empty();
        memory_holds_the_members(e);
    }
    CHECK(cancelled > 0);
    const outcome again = generate(e, prompt, false);
    REQUIRE_OK(again.status);
    CHECK(again.tokens == expected.tokens);
    engine_free(e);
}

int main() {
    a_failed_read_fails_the_request_and_nothing_else();
    a_cancelled_prompt_leaves_whole_members();
    return checks_done();
}
