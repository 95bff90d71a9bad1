import { ApiError } from './api-error';
import { readChatRequest, readTextRequest } from './completion-request';

const messages = [{ role: 'user', content: 'hi' }];

function refusal(read: () => unknown): ApiError {
  try {
    read();
  } catch (error) {
    if (error instanceof ApiError) return error;
    throw error;
  }
  throw new Error('it was not refused');
}

test('fills in what OpenAI takes by default', () => {
  expect(readChatRequest({ messages })).toEqual({
    model: null, messages, maxTokens: null, temperature: 1, topP: 1, seed: null, stop: [], stream: false, includeUsage: false, coldCache: false,
  });
  expect(readTextRequest({ prompt: 'a' })).toMatchObject({ prompt: 'a', maxTokens: 16 });
});

test('takes every field it knows', () => {
  expect(readChatRequest({
    model: 'm', messages: [{ role: 'developer', content: [{ type: 'text', text: 'a' }, { type: 'text', text: 'b' }] }], max_completion_tokens: 5, max_tokens: 9,
    temperature: 0, top_p: 0.5, seed: -1, stop: 'x', stream: true, stream_options: { include_usage: true }, n: 1, moefleet: { cold_cache: true },
    user: 'u', metadata: { a: 'b' }, store: false, tools: [], frequency_penalty: 0, logit_bias: {}, logprobs: false,
  })).toEqual({
    model: 'm', messages: [{ role: 'system', content: 'ab' }], maxTokens: 5, temperature: 0, topP: 0.5, seed: 2 ** 32 - 1, stop: ['x'], stream: true,
    includeUsage: true, coldCache: true,
  });
});

test('counts null as absent', () => {
  expect(readChatRequest({ messages, max_tokens: null, stop: null, n: null, tools: null, seed: null, stream_options: null, temperature: null })).toMatchObject({ maxTokens: null, stop: [] });
});

test.each<[unknown, unknown]>([['a', 'a'], [['a'], 'a'], [[1, 2], [1, 2]], [[[1, 2]], [1, 2]]])('takes the prompt %j', (prompt, read) => {
  expect(readTextRequest({ prompt }).prompt).toEqual(read);
});

test.each<[string, Record<string, unknown>, string]>([
  ['messages missing', {}, 'messages'],
  ['no message', { messages: [] }, 'messages'],
  ['a message that is none', { messages: ['hi'] }, 'messages[0]'],
  ['a role it does not know', { messages: [{ role: 'tool', content: 'a' }] }, 'messages[0].role'],
  ['content missing', { messages: [{ role: 'user' }] }, 'messages[0].content'],
  ['an image', { messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'x' } }] }] }, 'messages[0].content[0]'],
  ['several answers', { messages, n: 2 }, 'n'],
  ['temperature out of range', { messages, temperature: 2.1 }, 'temperature'],
  ['temperature as text', { messages, temperature: '1' }, 'temperature'],
  ['top_p out of range', { messages, top_p: -0.1 }, 'top_p'],
  ['no tokens', { messages, max_tokens: 0 }, 'max_tokens'],
  ['half a token', { messages, max_completion_tokens: 1.5 }, 'max_completion_tokens'],
  ['five stop strings', { messages, stop: ['a', 'b', 'c', 'd', 'e'] }, 'stop'],
  ['an empty stop string', { messages, stop: '' }, 'stop'],
  ['stop as a number', { messages, stop: 3 }, 'stop'],
  ['a seed that is no integer', { messages, seed: 0.5 }, 'seed'],
  ['stream as text', { messages, stream: 'yes' }, 'stream'],
  ['stream options without a stream', { messages, stream_options: { include_usage: true } }, 'stream_options'],
  ['tools', { messages, tools: [{ type: 'function' }] }, 'tools'],
  ['JSON mode', { messages, response_format: { type: 'json_object' } }, 'response_format'],
  ['a penalty', { messages, presence_penalty: 1 }, 'presence_penalty'],
  ['log probabilities', { messages, logprobs: true }, 'logprobs'],
  ['a bias on tokens', { messages, logit_bias: { 5: 1 } }, 'logit_bias'],
  ['a model that is no name', { messages, model: 5 }, 'model'],
])('refuses %s and names it', (_, body, param) => {
  const error = refusal(() => readChatRequest(body));
  expect([error.status, error.param]).toEqual([400, param]);
  expect(error.message).toContain(param);
});

test.each<[string, Record<string, unknown>, string]>([
  ['no prompt', {}, 'prompt'], ['two prompts', { prompt: ['a', 'b'] }, 'prompt'], ['negative tokens', { prompt: [-1] }, 'prompt'], ['an empty list', { prompt: [] }, 'prompt'],
  ['echo', { prompt: 'a', echo: true }, 'echo'], ['best_of', { prompt: 'a', best_of: 2 }, 'best_of'], ['a suffix', { prompt: 'a', suffix: 'b' }, 'suffix'], ['logprobs', { prompt: 'a', logprobs: 0 }, 'logprobs'],
])('refuses %s in a text completion', (_, body, param) => {
  expect(refusal(() => readTextRequest(body)).param).toBe(param);
});

test.each([null, [], 'text', 5])('refuses %j as a body', (body) => {
  expect(refusal(() => readChatRequest(body)).status).toBe(400);
});

test('refuses what is nested without end as any other value', () => {
  const deep = JSON.parse(`${'['.repeat(100_000)}${']'.repeat(100_000)}`) as unknown;
  expect(() => readChatRequest({ messages: [{ role: 'user', content: 'hi' }], modalities: deep })).toThrow(ApiError);
});
