/**
 * Reads the body of a completion request: what the engine can do is taken, what would change the answer and cannot be
 * done is refused by name, anything else is ignored, as OpenAI's own API ignores it. `null` counts as absent.
 */
import { badRequest } from './api-error';

export interface ChatMessage { role: string; content: string; }

/** What both endpoints share, defaults filled in. */
export interface SamplingRequest {
  /** null: whatever is loaded */
  model: string | null;
  /** null: as many as fit */
  maxTokens: number | null;
  temperature: number;
  topP: number;
  /** null: drawn per request */
  seed: number | null;
  stop: string[];
  stream: boolean;
  includeUsage: boolean;
  coldCache: boolean;
}

export interface ChatRequest extends SamplingRequest { messages: ChatMessage[]; }
export interface TextRequest extends SamplingRequest { prompt: string | number[]; }

type Body = Readonly<Record<string, unknown>>;

/** OpenAI's default for /v1/completions. */
const TEXT_MAX_TOKENS = 16;
const MAX_STOPS = 4;

/** Throws ApiError (400). */
export function readChatRequest(body: unknown): ChatRequest {
  const fields = asBody(body);
  refuse(fields, 'tools', (value) => !Array.isArray(value) || value.length > 0);
  refuse(fields, 'functions', (value) => !Array.isArray(value) || value.length > 0);
  refuse(fields, 'response_format', (value) => asObject(value)?.type !== 'text');
  refuse(fields, 'logprobs', (value) => value !== false);
  refuse(fields, 'top_logprobs', (value) => value !== 0);
  refuse(fields, 'audio', () => true);
  refuse(fields, 'modalities', (value) => !Array.isArray(value) || value.length !== 1 || value[0] !== 'text');
  const maxTokens = readCount(fields, 'max_completion_tokens') ?? readCount(fields, 'max_tokens');
  return { ...readSampling(fields), maxTokens, messages: readMessages(fields.messages) };
}

/** Throws ApiError (400). */
export function readTextRequest(body: unknown): TextRequest {
  const fields = asBody(body);
  refuse(fields, 'echo', (value) => value !== false);
  refuse(fields, 'suffix', (value) => value !== '');
  refuse(fields, 'best_of', (value) => value !== 1);
  refuse(fields, 'logprobs', () => true);
  return { ...readSampling(fields), maxTokens: readCount(fields, 'max_tokens') ?? TEXT_MAX_TOKENS, prompt: readPrompt(fields.prompt) };
}

function readSampling(fields: Body): Omit<SamplingRequest, 'maxTokens'> {
  refuse(fields, 'n', (value) => value !== 1);
  refuse(fields, 'frequency_penalty', (value) => value !== 0);
  refuse(fields, 'presence_penalty', (value) => value !== 0);
  refuse(fields, 'logit_bias', (value) => Object.keys(asObject(value) ?? { bad: 1 }).length > 0);
  const temperature = readNumber(fields, 'temperature', 0, 2) ?? 1;
  const topP = readNumber(fields, 'top_p', 0, 1) ?? 1;
  const stream = readBoolean(fields, 'stream') ?? false;
  const options = readObject(fields, 'stream_options');
  if (options && !stream) throw badRequest('stream_options', 'stream_options is allowed only when stream is true');
  return {
    model: readString(fields, 'model'),
    // A nucleus of nothing still holds the likeliest token.
    temperature: topP === 0 ? 0 : temperature,
    topP: topP === 0 ? 1 : topP,
    seed: readSeed(fields),
    stop: readStop(fields.stop),
    stream,
    includeUsage: options ? readBoolean(options, 'include_usage', 'stream_options.include_usage') ?? false : false,
    coldCache: readBoolean(readObject(fields, 'moefleet') ?? {}, 'cold_cache', 'moefleet.cold_cache') ?? false,
  };
}

function readMessages(value: unknown): ChatMessage[] {
  if (!Array.isArray(value) || value.length === 0) throw badRequest('messages', 'messages: expected a list with at least one message');
  return value.map((message: unknown, index) => {
    const param = `messages[${index}]`;
    const fields = asObject(message);
    if (!fields) throw badRequest(param, `${param}: expected an object with role and content`);
    return { role: readRole(fields.role, `${param}.role`), content: readContent(fields.content, `${param}.content`) };
  });
}

function readRole(value: unknown, param: string): string {
  if (value === 'developer') return 'system';
  if (value === 'system' || value === 'user' || value === 'assistant') return value;
  throw badRequest(param, `${param}: expected system, developer, user or assistant`);
}

function readContent(value: unknown, param: string): string {
  if (typeof value === 'string') return value;
  if (!Array.isArray(value)) throw badRequest(param, `${param}: expected a string or a list of text parts`);
  return value.map((part: unknown, index) => {
    const fields = asObject(part);
    if (fields?.type === 'text' && typeof fields.text === 'string') return fields.text;
    throw badRequest(`${param}[${index}]`, `${param}[${index}]: only parts of type text are supported`);
  }).join('');
}

function readPrompt(value: unknown): string | number[] {
  if (typeof value === 'string') return value;
  if (isTokens(value)) return value;
  if (Array.isArray(value) && value.length === 1) {
    const only: unknown = value[0];
    if (typeof only === 'string' || isTokens(only)) return only;
  }
  if (Array.isArray(value) && value.length > 1 && value.every((part) => typeof part === 'string' || Array.isArray(part))) {
    throw badRequest('prompt', `prompt: one prompt per request is supported, got ${value.length}`);
  }
  throw badRequest('prompt', 'prompt: expected a string, or a list with one string or one list of token ids');
}

function isTokens(value: unknown): value is number[] {
  return Array.isArray(value) && value.length > 0 && value.every((token) => Number.isInteger(token) && token >= 0);
}

function readStop(value: unknown): string[] {
  if (value === undefined || value === null) return [];
  const stops: unknown[] = typeof value === 'string' ? [value] : Array.isArray(value) ? value : [null];
  if (stops.length > MAX_STOPS || !stops.every((stop) => typeof stop === 'string' && stop !== '')) {
    throw badRequest('stop', `stop: expected a string or a list of up to ${MAX_STOPS} strings, none empty`);
  }
  return stops as string[];
}

/** The engine takes 32 bits; OpenAI's clients may send 64. */
function readSeed(fields: Body): number | null {
  const seed = fields.seed ?? null;
  if (seed === null) return null;
  if (typeof seed !== 'number' || !Number.isInteger(seed)) throw badRequest('seed', 'seed: expected an integer');
  return Number(BigInt.asUintN(32, BigInt(seed)));
}

function readCount(fields: Body, param: string): number | null {
  const value = fields[param] ?? null;
  if (value === null) return null;
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 1) throw badRequest(param, `${param}: expected an integer of at least 1`);
  return value;
}

function readNumber(fields: Body, param: string, min: number, max: number): number | null {
  const value = fields[param] ?? null;
  if (value === null) return null;
  if (typeof value !== 'number' || !(value >= min && value <= max)) throw badRequest(param, `${param}: expected a number from ${min} to ${max}`);
  return value;
}

function readBoolean(fields: Body, param: string, shown = param): boolean | null {
  const value = fields[param] ?? null;
  if (value === null) return null;
  if (typeof value !== 'boolean') throw badRequest(shown, `${shown}: expected true or false`);
  return value;
}

function readString(fields: Body, param: string): string | null {
  const value = fields[param] ?? null;
  if (value === null) return null;
  if (typeof value !== 'string') throw badRequest(param, `${param}: expected a string`);
  return value;
}

function readObject(fields: Body, param: string): Body | null {
  const value = fields[param] ?? null;
  if (value === null) return null;
  const object = asObject(value);
  if (!object) throw badRequest(param, `${param}: expected an object`);
  return object;
}

/** Refuses a field that is there and asks for what the engine cannot do. */
function refuse(fields: Body, param: string, asksForIt: (value: unknown) => boolean): void {
  const value = fields[param] ?? null;
  if (value !== null && asksForIt(value)) {
    throw badRequest(param, `${param}: this value is not supported by this server; leave the field out`, 'unsupported_value');
  }
}

function asBody(body: unknown): Body {
  const fields = asObject(body);
  if (!fields) throw badRequest(null, 'expected a JSON object as the body');
  return fields;
}

function asObject(value: unknown): Body | null {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? value as Body : null;
}
