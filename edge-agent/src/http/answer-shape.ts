/** The JSON of answers, as OpenAI's API has it, with one field of our own, `moefleet`. Pure. */
import type { Answer } from './completion-run';

export interface AnswerHead {
  /** 24 hex digits, shared by the request id and the answer's id */
  hex: string;
  /** seconds since 1970 */
  created: number;
  model: string;
}

/** How one endpoint writes its answers. */
export interface AnswerShape {
  operation: 'chat' | 'text_completion';
  whole(head: AnswerHead, text: string, finishReason: string): Record<string, unknown>;
  /** `text` null with a finish reason is the last chunk; `first` opens the stream */
  chunk(head: AnswerHead, text: string | null, first: boolean, finishReason: string | null): Record<string, unknown>;
  /** a chunk without choices, for the usage counts */
  bare(head: AnswerHead): Record<string, unknown>;
}

export const CHAT: AnswerShape = {
  operation: 'chat',
  whole: (head, text, finishReason) => ({
    ...chatHead(head, 'chat.completion'),
    choices: [{ index: 0, message: { role: 'assistant', content: text, refusal: null }, logprobs: null, finish_reason: finishReason }],
  }),
  chunk: (head, text, first, finishReason) => ({
    ...chatHead(head, 'chat.completion.chunk'),
    choices: [{
      index: 0,
      delta: { ...(first ? { role: 'assistant' } : {}), ...(text === null ? {} : { content: text }) },
      logprobs: null,
      finish_reason: finishReason,
    }],
  }),
  bare: (head) => ({ ...chatHead(head, 'chat.completion.chunk'), choices: [] }),
};

export const TEXT: AnswerShape = {
  operation: 'text_completion',
  whole: (head, text, finishReason) => ({
    ...textHead(head), choices: [{ text, index: 0, logprobs: null, finish_reason: finishReason }],
  }),
  chunk: (head, text, _first, finishReason) => ({
    ...textHead(head), choices: [{ text: text ?? '', index: 0, logprobs: null, finish_reason: finishReason }],
  }),
  bare: (head) => ({ ...textHead(head), choices: [] }),
};

export function usageOf(answer: Answer): Record<string, number> {
  const { promptTokens, completionTokens } = answer;
  return { prompt_tokens: promptTokens, completion_tokens: completionTokens, total_tokens: promptTokens + completionTokens };
}

/** Counts of prefill and decode apart; times in nanoseconds; tokens_per_second of decode, null where nothing was decoded. */
export function moefleetOf(requestId: string, answer: Answer): Record<string, unknown> {
  const { result, misses, traceIds } = answer.outcome;
  return {
    request_id: requestId,
    misses,
    hits: result.prefillHits + result.decodeHits,
    prefill_hits: result.prefillHits,
    prefill_misses: result.prefillMisses,
    decode_hits: result.decodeHits,
    decode_misses: result.decodeMisses,
    decode_swaps: result.decodeSwaps,
    flash_bytes: result.flashBytes,
    flash_reads: result.flashReads,
    prefill_ns: result.prefillNs,
    decode_ns: result.decodeNs,
    stall_ns: result.stallNs,
    tokens_per_second: answer.decodeSteps > 0 && result.decodeNs > 0 ? answer.decodeSteps / (result.decodeNs / 1e9) : null,
    trace_ids: traceIds,
  };
}

function chatHead(head: AnswerHead, object: string) {
  return { id: `chatcmpl-${head.hex}`, object, created: head.created, model: head.model };
}

function textHead(head: AnswerHead) {
  return { id: `cmpl-${head.hex}`, object: 'text_completion', created: head.created, model: head.model };
}
