// Text to tokens and back, and chat formatting, by the model's own vocabulary and template.
#include "engine-state.h"

#include <cstring>

// Reads of the vocabulary only, so they may run beside a request; the mutex keeps `engine_close` away.
static engine_status check_open(const engine & e) {
    return e.closed ? status_error(ENGINE_CLOSED, "the engine is closed") : engine_status();
}

engine_status engine_tokenize(engine * e, const std::string & text, bool add_bos, bool parse_special, std::vector<int32_t> & out) {
    std::lock_guard<std::mutex> lock(e->mutex);
    const engine_status status = check_open(*e);
    if (failed(status)) return status;
    if (text.size() > (1u << 30)) return status_error(ENGINE_BAD_ARGUMENT, "text: at most 1 GiB, found %zu bytes", text.size());
    // llama.cpp's own flag would follow the model's wish, so the BOS is put in front by hand.
    const int32_t bos = llama_vocab_bos(e->vocab);
    const size_t front = add_bos && bos >= 0 ? 1 : 0;
    out.resize(text.size() / 3 + 16);
    int32_t n = llama_tokenize(e->vocab, text.data(), int32_t(text.size()), out.data() + front, int32_t(out.size() - front), false, parse_special);
    if (n < 0 && n != INT32_MIN) {
        out.resize(size_t(-n) + front);
        n = llama_tokenize(e->vocab, text.data(), int32_t(text.size()), out.data() + front, int32_t(out.size() - front), false, parse_special);
    }
    if (n < 0) return status_error(ENGINE_BAD_ARGUMENT, "text: llama_tokenize answered %d", n);
    if (front) out[0] = bos;
    out.resize(size_t(n) + front);
    return {};
}

engine_status engine_detokenize(engine * e, const int32_t * tokens, size_t n, std::string & out) {
    std::lock_guard<std::mutex> lock(e->mutex);
    const engine_status status = check_open(*e);
    if (failed(status)) return status;
    out.clear();
    const int32_t vocab = llama_vocab_n_tokens(e->vocab);
    std::string piece;
    for (size_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || tokens[i] >= vocab) {
            return status_error(ENGINE_BAD_ARGUMENT, "token %zu: expected 0 to %d, found %d", i, vocab - 1, tokens[i]);
        }
        piece.resize(64);
        int32_t got = llama_token_to_piece(e->vocab, tokens[i], piece.data(), int32_t(piece.size()), 0, false);
        if (got < 0) {
            piece.resize(size_t(-got));
            got = llama_token_to_piece(e->vocab, tokens[i], piece.data(), int32_t(piece.size()), 0, false);
        }
        if (got > 0) out.append(piece.data(), size_t(got));
    }
    return {};
}

engine_status engine_chat_template(engine * e, bool & has, std::string & out) {
    std::lock_guard<std::mutex> lock(e->mutex);
    const engine_status status = check_open(*e);
    if (failed(status)) return status;
    const char * text = llama_model_chat_template(e->model, nullptr);
    has = text != nullptr;
    out = text ? text : "";
    return {};
}

// For a model without a template, or with one llama.cpp does not know: one labelled paragraph per message.
static std::string plain_conversation(const std::vector<chat_message> & messages) {
    std::string out;
    for (const auto & m : messages) out += m.role + ": " + m.content + "\n\n";
    return out + "assistant:";
}

engine_status engine_apply_chat_template(engine * e, const std::vector<chat_message> & messages, std::string & out) {
    std::lock_guard<std::mutex> lock(e->mutex);
    const engine_status status = check_open(*e);
    if (failed(status)) return status;
    const char * text = llama_model_chat_template(e->model, nullptr);
    std::vector<llama_chat_message> chat;
    for (const auto & m : messages) chat.push_back({m.role.c_str(), m.content.c_str()});
    const int32_t n = text ? llama_chat_apply_template(text, chat.data(), chat.size(), true, nullptr, 0) : -1;
    if (n < 0) {
        out = plain_conversation(messages);
        return {};
    }
    out.resize(size_t(n));
    llama_chat_apply_template(text, chat.data(), chat.size(), true, out.data(), n);
    return {};
}
