/** The whole agent as a process of its own, without a coordinator: what it prints, serves, survives and leaves behind. */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { until } from '../../test/harness/ports';
import { writeAbortingModel } from './control/testing/aborting-model';
import { REFERENCE_MODEL } from './control/testing/test-host';

const MAIN = join(__dirname, '..', 'dist', 'main.js');
const RUN = `require(${JSON.stringify(MAIN)}).runAgent(JSON.parse(process.argv[1]), process.env).then((code) => process.exit(code), (error) => { process.stderr.write(error.message); process.exit(2); })`;

interface LogLine { msg: string; [field: string]: unknown; }

class AgentProcess {
  readonly child: ChildProcess;
  stderr = '';
  exitCode: Promise<number | null>;

  constructor(flags: Record<string, unknown>) {
    const all = { id: 'test', coordinator: 'none', http: '127.0.0.1:0', threads: 1, maxCache: '3.6MiB', model: REFERENCE_MODEL, stateDir: join(folder, 'state'), ...flags };
    this.child = spawn(process.execPath, ['-e', RUN, JSON.stringify(all)], { stdio: ['ignore', 'ignore', 'pipe'] });
    this.child.stderr!.setEncoding('utf8').on('data', (text: string) => { this.stderr += text; });
    this.exitCode = new Promise((resolve) => this.child.once('close', (code) => resolve(code)));
    agents.push(this);
  }

  lines(): LogLine[] {
    return this.stderr.split('\n').filter((line) => line.startsWith('{')).map((line) => JSON.parse(line) as LogLine);
  }

  async url(): Promise<string> {
    return String((await until('the listening line', () => this.lines().find(({ msg }) => msg === 'listening')))['httpUrl']);
  }

  async ready(): Promise<string> {
    const url = await this.url();
    await until('it is ready', async () => (await fetch(`${url}/healthz`)).ok);
    return url;
  }

  /** Processes whose parent it is. */
  children(): number[] {
    return readdirSync('/proc').filter((name) => /^\d+$/.test(name)).map(Number).filter((pid) => {
      try {
        return Number(/\) \S (\d+)/.exec(readFileSync(`/proc/${pid}/stat`, 'utf8'))![1]) === this.child.pid;
      } catch {
        return false;
      }
    });
  }

  async end(signal: NodeJS.Signals = 'SIGTERM'): Promise<number | null> {
    this.child.kill(signal);
    return this.exitCode;
  }
}

let folder: string;
let agents: AgentProcess[];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'moefleet-agent-'));
  agents = [];
  if (!existsSync(MAIN)) throw new Error(`${MAIN} is not there; build it with: npx tsc -b edge-agent`);
});
afterEach(async () => {
  await Promise.all(agents.map((agent) => agent.end('SIGKILL')));
  rmSync(folder, { recursive: true, force: true });
});

async function complete(url: string, tokens: number) {
  const response = await fetch(`${url}/v1/completions`, {
    method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ model: 'default', prompt: 'The river', max_tokens: tokens, temperature: 0 }),
  });
  return { status: response.status, body: await response.json() as { usage?: { completion_tokens: number }; error?: { message: string } } };
}

test('serves without a coordinator, and a signal to the whole group ends it clean, child and lock included', async () => {
  const agent = new AgentProcess({});
  const url = await agent.ready();
  expect((await complete(url, 8)).body.usage!.completion_tokens).toBe(8);
  const metrics = await (await fetch(`${url}/metrics`)).text();
  for (const line of ['lambda 0', 'top_j 2', 'generation 0', 'connected 0', 'ready 1']) expect(metrics).toContain(`\nmoefleet_agent_${line}\n`);
  expect(Number(/^moefleet_agent_rss_bytes (\d+)$/m.exec(metrics)![1])).toBeGreaterThan(50 * 1024 ** 2);
  const [host, ...more] = agent.children();
  expect(more).toEqual([]);
  process.kill(host!, 'SIGINT');
  process.kill(host!, 'SIGTERM');
  expect((await complete(url, 8)).status).toBe(200);
  expect(await agent.end('SIGINT')).toBe(0);
  expect(existsSync(`/proc/${host}`)).toBe(false);
  expect(readdirSync(join(folder, 'state'))).not.toContain('lock');
});

test('a kill of the supervisor leaves no orphan, and its lock does not stop the next', async () => {
  const agent = new AgentProcess({});
  await agent.ready();
  const [host] = agent.children();
  await agent.end('SIGKILL');
  await until('the engine host is gone', () => !existsSync(`/proc/${host}`));
  await new AgentProcess({}).ready();
});

test('a second agent with the same state folder is refused by name', async () => {
  await new AgentProcess({}).ready();
  const second = new AgentProcess({});
  expect(await second.exitCode).toBe(1);
  expect(second.lines().at(-1)!.msg).toMatch(new RegExp(`${join(folder, 'state')}.*another agent.*--state-dir`));
});

test('a limit below one token cycle is refused with the arithmetic', async () => {
  const agent = new AgentProcess({ maxCache: '1MiB' });
  expect(await agent.exitCode).toBe(2);
  expect(agent.stderr).toMatch(/one token touches \d+ bytes.*4 of 32.*6 layers.*--max-cache allows 1048576/);
});

test('a setting that makes no sense ends it with 2 before anything is touched', async () => {
  const agent = new AgentProcess({ maxLambda: 2 });
  expect(await agent.exitCode).toBe(2);
  expect(agent.stderr).toMatch(/--max-lambda: "2"/);
  expect(readdirSync(folder)).toEqual([]);
});

test('a model that is none leaves a running agent that says why, and takes a good one by SIGHUP', async () => {
  const bad = join(folder, 'bad.gguf');
  writeFileSync(bad, 'this is no model');
  const agent = new AgentProcess({ model: bad });
  const url = await agent.url();
  const health = await until('it says why', async () => {
    const seen = await (await fetch(`${url}/healthz`)).json() as { status: string; reason: string };
    return seen.status === 'failed' ? seen : null;
  });
  expect(health.reason).toMatch(/bad\.gguf/);
  expect((await complete(url, 4)).status).toBe(503);
  writeFileSync(join(folder, 'state', 'model'), `${REFERENCE_MODEL}\n`);
  agent.child.kill('SIGHUP');
  await agent.ready();
  expect((await complete(url, 4)).status).toBe(200);
});

test('a model that makes llama.cpp abort is told by its assertion, and the last good one serves again', async () => {
  const agent = new AgentProcess({});
  const url = await agent.ready();
  const aborting = join(folder, 'aborting.gguf');
  writeAbortingModel(REFERENCE_MODEL, aborting);
  const load = (path: string) => fetch(`${url}/moefleet/v1/model`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ path }) });
  const refused = await load(aborting);
  expect(refused.status).toBeGreaterThanOrEqual(400);
  expect(await refused.text()).toMatch(/GGML_ASSERT/);
  expect((await complete(url, 4)).status).toBe(200);
  await agent.end();
  const again = new AgentProcess({ model: aborting });
  expect((await complete(await again.ready(), 4)).status).toBe(200);
  expect(again.lines().filter(({ msg }) => msg === 'engine host crashed')).toHaveLength(2);
});
