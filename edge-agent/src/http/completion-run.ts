/** One completion from its request to its answer: tokens in, shown text out. Knows nothing of HTTP or JSON. */
import { randomInt } from 'node:crypto';
import type { EngineHost, LoadedModel } from '../engine-host';
import { AnswerComplete, type CompletionOutcome, type EngineQueue } from '../engine-queue';
import { AnswerText } from './answer-text';
import { ApiError, badRequest, contextLengthExceeded } from './api-error';
import type { ChatRequest, SamplingRequest, TextRequest } from './completion-request';

export interface Answer {
  finishReason: 'stop' | 'length';
  promptTokens: number;
  /** up to the token that completed a stop string, where one did */
  completionTokens: number;
  decodeSteps: number;
  outcome: CompletionOutcome;
}

export interface RunRequest {
  requestId: string;
  operation: 'chat' | 'text_completion';
  traceparent: string | null;
  prompt: Int32Array;
  maxTokens: number;
  sampling: SamplingRequest;
}

/** The conversation in the model's own template. Throws ApiError where it does not fit. */
export async function chatPrompt(host: EngineHost, model: LoadedModel, request: ChatRequest): Promise<{ prompt: Int32Array; maxTokens: number }> {
  const text = await host.applyChatTemplate(request.messages);
  return fit('messages', await host.tokenize(text, true, true), model, request.maxTokens);
}

/** Throws ApiError where it is empty, names tokens the model does not have, or does not fit. */
export async function textPrompt(host: EngineHost, model: LoadedModel, request: TextRequest): Promise<{ prompt: Int32Array; maxTokens: number }> {
  const { prompt } = request;
  if (typeof prompt === 'string') return fit('prompt', await host.tokenize(prompt, true, false), model, request.maxTokens);
  const foreign = prompt.find((token) => token >= model.info.vocab);
  if (foreign !== undefined) throw badRequest('prompt', `prompt: token ${foreign} is not in the model's vocabulary of ${model.info.vocab}`);
  return fit('prompt', Int32Array.from(prompt), model, request.maxTokens);
}

/**
 * Runs in the queue's turn and shows text through `onText` as it comes. Aborting `client` ends it; rejects with the
 * abort's reason then, otherwise with what the queue or the engine rejects with.
 */
export async function runCompletion(queue: EngineQueue, request: RunRequest, onText: (text: string) => void, client: AbortSignal): Promise<Answer> {
  const { sampling } = request;
  const text = new AnswerText(sampling.stop);
  const cut = new AbortController();
  const onClientGone = () => cut.abort(client.reason);
  if (client.aborted) onClientGone();
  client.addEventListener('abort', onClientGone, { once: true });
  const show = (piece: string) => { if (piece !== '') onText(piece); };
  let shownTokens = 0;
  let decodeSteps = 0;
  try {
    const outcome = await queue.complete({
      generate: {
        requestId: request.requestId, prompt: request.prompt, maxTokens: request.maxTokens,
        temperature: sampling.temperature, topP: sampling.topP, seed: sampling.seed ?? randomInt(2 ** 32),
        coldCache: sampling.coldCache, captureRouter: false,
      },
      operation: request.operation, traceparent: request.traceparent,
    }, (step) => {
      if (step.step > 0) decodeSteps += 1;
      if (text.stopped) return;
      if (step.token >= 0) shownTokens += 1;
      show(text.push(step.text));
      if (text.stopped) cut.abort(new AnswerComplete());
    }, cut.signal);
    show(text.finish());
    const { result } = outcome;
    const completionTokens = text.stopped ? shownTokens : result.completionTokens;
    return { finishReason: finishOf(text.stopped, result.finishReason, client), promptTokens: result.promptTokens, completionTokens, decodeSteps, outcome };
  } finally {
    client.removeEventListener('abort', onClientGone);
  }
}

function finishOf(stopped: boolean, reason: 'stop' | 'length' | 'cancelled', client: AbortSignal): 'stop' | 'length' {
  if (stopped) return 'stop';
  if (reason !== 'cancelled') return reason;
  if (client.aborted) throw client.reason;
  throw new ApiError(503, 'server_error', 'the request was cancelled on the device', null, 'cancelled', 1);
}

function fit(param: string, prompt: Int32Array, model: LoadedModel, maxTokens: number | null): { prompt: Int32Array; maxTokens: number } {
  if (prompt.length === 0) throw badRequest(param, `${param}: it makes no tokens; give at least one`);
  const room = model.contextTokens - prompt.length;
  const asked = maxTokens ?? Math.max(1, room);
  if (asked > room) {
    throw contextLengthExceeded(param, `This model's maximum context length is ${model.contextTokens} tokens; the request needs ${prompt.length + asked}`
      + ` (${prompt.length} in the prompt, ${asked} for the completion). Shorten the prompt or the completion.`);
  }
  return { prompt, maxTokens: asked };
}
