import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { disagreement } from './first-tokens';
import { type Expectation, judgeTrial, type TrialView } from './judge';

/** An agent as the judge sees it. */
interface FakeAgent { status: number; connected: boolean; answer: (prompt: string) => string; }

let server: Server;
let agent: FakeAgent;
let nowMs: number;
let alive: boolean;

beforeEach(async () => {
  agent = { status: 200, connected: true, answer: (prompt) => prompt.slice(0, 3) };
  nowMs = 0.25;
  alive = true;
  server = createServer((request, response) => {
    if (request.url === '/healthz') return response.writeHead(agent.status).end(JSON.stringify({ status: agent.status === 200 ? 'ok' : 'loading', reason: 'the model is being loaded', connected: agent.connected }));
    let body = '';
    request.on('data', (data: Buffer) => { body += data.toString(); });
    return request.on('end', () => response.end(JSON.stringify({ choices: [{ text: agent.answer((JSON.parse(body) as { prompt: string }).prompt) }] })));
  });
  await new Promise<void>((resolve) => { server.listen(0, '127.0.0.1', resolve); });
});
afterEach(() => new Promise((resolve) => {
  server.closeAllConnections();
  server.close(resolve);
}));

const url = (): string => `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
const view = (change: Partial<TrialView> = {}): TrialView => ({
  pid: 7, apiKey: null, alive: () => alive, running: () => ({ pid: 7, version: '2.0.0', httpUrl: url() }), now: () => nowMs,
  sleep: async (ms) => { nowMs += ms; }, ...change,
});
const PROMPTS = ['The', 'Onc', 'def', 'In ', 'Two', 'The', 'He ', 'It '];
const expected = (change: Partial<Expectation> = {}): Expectation => ({ connected: true, answers: PROMPTS, deadlineMs: 5_000.5, ...change });

describe('the judge of a trial', () => {
  it('finds an agent healthy that is connected and answers as the one before', async () => {
    expect(await judgeTrial(view(), expected())).toBeNull();
  });

  it('waits for what comes late', async () => {
    agent.connected = false;
    const sleep = async (ms: number) => {
      nowMs += ms;
      agent.connected = nowMs > 2_000;
    };
    expect(await judgeTrial(view({ sleep }), expected())).toBeNull();
  });

  it.each<[string, () => Partial<TrialView> | void, string]>([
    ['ended', () => { alive = false; }, 'ended before it was healthy'],
    ['never listens', () => ({ running: () => null }), 'not healthy within 5 s: it does not listen'],
    ['is the one before, not the one on trial', () => ({ running: () => ({ pid: 6, version: '1.0.0', httpUrl: url() }) }), 'it does not listen'],
    ['loads no model', () => { agent.status = 503; }, 'its model is not loaded: the model is being loaded'],
    ['does not connect', () => { agent.connected = false; }, 'not connected to the coordinator'],
    ['serves garbage', () => { agent.answer = () => 'zq'; }, 'of 8 first tokens 0 are those of the agent before it'],
  ])('says why where it %s', async (_, change, reason) => {
    expect(await judgeTrial(view(change() ?? {}), expected())).toContain(reason);
  });

  it('asks for no answers where the one before gave none', async () => {
    agent.status = 503;
    expect(await judgeTrial(view(), expected({ answers: null }))).toBeNull();
  });
});

describe('first tokens', () => {
  it('may differ in a quarter, which is what rounding does at most', () => {
    expect(disagreement(PROMPTS, [...PROMPTS.slice(0, 6), 'x', 'y'])).toBeNull();
    expect(disagreement(PROMPTS, [...PROMPTS.slice(0, 5), 'x', 'y', 'z'])).toContain('of 8 first tokens 5');
    expect(disagreement(PROMPTS, [])).toContain('of 8 first tokens 0');
  });
});
