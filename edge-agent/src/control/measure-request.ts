/** Checks a Measure before any work is done for it. */
import type { Measure } from '@moefleet/proto';

const MAX_PROMPTS = 64;
const MAX_TOKENS_PER_PROMPT = 4096;
const MAX_PROMPT_BYTES = 64 * 1024;
const MAX_TEXT_BYTES = 512 * 1024;
const MAX_TEMPERATURE = 2;
const DEFAULT_CONTEXT = 256;

export interface MeasurePlan {
  prompts: string[];
  tokensPerPrompt: number;
  temperature: number;
  seed: number;
  /** null: no text to score */
  text: { text: string; tokens: number; context: number } | null;
}

/** What was asked for makes no sense, or cannot be done with the loaded model; the message is the task's reason. */
export class MeasureError extends Error {
  override readonly name = 'MeasureError';
}

/** Throws MeasureError. `contextTokens`: of the loaded model. */
export function planMeasure(measure: Measure, contextTokens: number): MeasurePlan {
  const { prompts, tokensPerPrompt, temperature, seed, text } = measure;
  check(prompts.length <= MAX_PROMPTS, `prompts: ${prompts.length} given, at most ${MAX_PROMPTS} are measured`);
  check(prompts.length > 0 || text !== '', 'nothing to measure: neither prompts nor a text');
  prompts.forEach((prompt, i) => check(prompt !== '' && Buffer.byteLength(prompt) <= MAX_PROMPT_BYTES, `prompts[${i}]: ${Buffer.byteLength(prompt)} bytes, expected 1 to ${MAX_PROMPT_BYTES}`));
  if (prompts.length > 0) check(tokensPerPrompt >= 1 && tokensPerPrompt <= MAX_TOKENS_PER_PROMPT, `tokens_per_prompt: ${tokensPerPrompt} is not in [1,${MAX_TOKENS_PER_PROMPT}]`);
  check(temperature >= 0 && temperature <= MAX_TEMPERATURE, `temperature: ${temperature} is not in [0,${MAX_TEMPERATURE}]`);
  return { prompts, tokensPerPrompt, temperature, seed, text: text === '' ? null : planText(measure, contextTokens) };
}

function planText({ text, textTokens, context }: Measure, contextTokens: number): NonNullable<MeasurePlan['text']> {
  const bytes = Buffer.byteLength(text);
  check(bytes <= MAX_TEXT_BYTES, `text: ${bytes} bytes, at most ${MAX_TEXT_BYTES} are scored`);
  const window = context === 0 ? Math.min(DEFAULT_CONTEXT, contextTokens) : context;
  check(window <= contextTokens, `context: ${window} tokens, the loaded model was opened with ${contextTokens}`);
  check(textTokens > 0 && textTokens % window === 0, `text_tokens: ${textTokens} is no positive multiple of context ${window}`);
  return { text, tokens: textTokens, context: window };
}

/** As many of a text's tokens as can be scored: at most `asked`, a multiple of `context`, each with a next token. */
export function scorableTokens(available: number, asked: number, context: number): number {
  const tokens = Math.min(asked, Math.floor((available - 1) / context) * context);
  check(tokens > 0, `text: ${available} tokens, too short for one window of ${context} and the token after it`);
  return tokens;
}

function check(holds: boolean, message: string): void {
  if (!holds) throw new MeasureError(message);
}
