import OpenAI from 'openai';
import { TestFleet } from '../harness/test-fleet';
import type { RunningAgent } from '../../services/demo/src/local-fleet';

let fleet: TestFleet;
let agent: RunningAgent;
let client: OpenAI;

beforeAll(async () => {
  fleet = new TestFleet();
  agent = await fleet.agent('lonely-1'); // no coordinator: it serves all the same
  client = new OpenAI({ baseURL: `${agent.httpUrl}/v1`, apiKey: 'none', maxRetries: 0 });
});
afterAll(() => fleet?.stop());

test('the public client lists the model', async () => {
  const models = await client.models.list();
  expect(models.data).toHaveLength(1);
  expect(models.data[0]!.object).toBe('model');
});

test('streaming chat ends with usage, and its pieces make up the whole answer', async () => {
  const request = { model: 'default', messages: [{ role: 'user' as const, content: 'Tell me about rivers.' }], max_tokens: 48, temperature: 0 };
  const whole = await client.chat.completions.create(request);
  const stream = await client.chat.completions.create({ ...request, stream: true, stream_options: { include_usage: true } });
  let text = '';
  let usage: OpenAI.CompletionUsage | null | undefined = null;
  let finish: string | null = null;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? '';
    finish = chunk.choices[0]?.finish_reason ?? finish;
    usage = chunk.usage ?? usage;
  }
  expect(text).toBe(whole.choices[0]!.message.content);
  expect(finish).toBe(whole.choices[0]!.finish_reason);
  expect(usage!.completion_tokens).toBe(whole.usage!.completion_tokens);
  expect(usage!.prompt_tokens).toBeGreaterThan(0);
});

test('a client that goes away frees the engine for the next', async () => {
  const controller = new AbortController();
  const stream = await client.completions.create({ model: 'default', prompt: 'The river', max_tokens: 200, stream: true }, { signal: controller.signal });
  for await (const chunk of stream) {
    expect(chunk.object).toBe('text_completion');
    break;
  }
  controller.abort();
  const next = await client.completions.create({ model: 'default', prompt: 'A hill', max_tokens: 4, temperature: 0 });
  expect(next.usage!.completion_tokens).toBeGreaterThan(0);
});

test('a foreign Host is refused', async () => {
  const { request } = await import('node:http');
  const { hostname, port } = new URL(agent.httpUrl);
  const status = await new Promise<number | undefined>((resolve, reject) => {
    request({ hostname, port, path: '/v1/models', headers: { host: 'evil.example' } }, (response) => { response.resume(); resolve(response.statusCode); })
      .on('error', reject).end();
  });
  expect(status).toBe(403);
});
