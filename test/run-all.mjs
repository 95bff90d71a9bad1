/**
 * The whole suite, in one run with one sum: checks (each counts as one test), C++ tests through ctest, plain and under
 * sanitizers, TypeScript tests through jest, the benchmarks' through Node's own runner. The last line is `N passed, M failed, K skipped`.
 */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';

const root = join(import.meta.dirname ?? new URL('.', import.meta.url).pathname, '..');
const inCi = ['true', '1'].includes(process.env.CI ?? '');
const scratch = mkdtempSync(join(tmpdir(), 'moefleet-test-'));
const sum = { passed: 0, failed: 0, skipped: 0 };
const troubles = [];

/** Several times what the longest step takes: a step that hangs is a failure, not a run without end. */
const STEP_LIMIT_MS = 20 * 60_000;

/** Each step is a process group of its own, so that none outlives the run. */
const running = new Set();
function start(title, command, args, stdio) {
  const child = spawn(command, args, { cwd: root, detached: true, stdio });
  running.add(child);
  const ended = new Promise((resolve) => {
    child.once('exit', (status) => resolve(status === 0));
    child.once('error', ({ message }) => { process.stdout.write(`   ${title}: ${message}\n`); resolve(false); });
  }).finally(() => running.delete(child));
  return { title, child, ended };
}
function endGroup({ pid }) {
  try { process.kill(-pid, 'SIGKILL'); } catch { /* has ended */ }
}
process.once('exit', () => running.forEach(endGroup));
for (const [signal, status] of [['SIGINT', 130], ['SIGTERM', 143], ['SIGHUP', 129]]) process.once(signal, () => process.exit(status));

/** Whether it ended well; stopped after STEP_LIMIT_MS from now with all that it started. */
async function finished({ title, child, ended }) {
  const late = setTimeout(() => {
    process.stdout.write(`   ${title}: stopped after ${STEP_LIMIT_MS / 60_000} minutes\n`);
    endGroup(child);
  }, STEP_LIMIT_MS);
  return ended.finally(() => clearTimeout(late));
}

async function run(title, command, args) {
  process.stdout.write(`\n== ${title}\n`);
  const begun = Date.now();
  const ok = await finished(start(title, command, args, ['ignore', 'inherit', 'inherit']));
  process.stdout.write(`   ${((Date.now() - begun) / 1000).toFixed(0)} s\n`);
  return ok;
}

function add(title, passed, failed, skipped) {
  sum.passed += passed;
  sum.failed += failed;
  sum.skipped += skipped;
  if (failed > 0) troubles.push(`${title}: ${failed} failed`);
}

const count = (title, ok) => add(title, ok ? 1 : 0, ok ? 0 : 1, 0);
const check = async (title, command, args) => count(title, await run(title, command, args));

const junitOf = (script) => join(scratch, `${script.replace(/\W/g, '-')}.xml`);
const nativeRun = (script) => ['npm', 'run', '--silent', script, '-w', '@moefleet/edge-agent', '--', '--junit', junitOf(script)];

async function nativeTests(title, script) {
  const [npm, ...args] = nativeRun(script);
  countNative(title, script, await run(title, npm, args));
}

/** A step beside those that follow. `finish` waits for its end, shows what it said, and tells whether it ended well. */
function runBeside(title, command, args) {
  const log = join(scratch, `${title.replace(/\W/g, '-')}.log`);
  const output = openSync(log, 'w');
  const step = start(title, command, args, ['ignore', output, output]);
  return {
    async finish() {
      process.stdout.write(`\n== ${title} (ran beside the others)\n`);
      const begun = Date.now();
      const ok = await finished(step);
      process.stdout.write(`${readFileSync(log, 'utf8')}   ${((Date.now() - begun) / 1000).toFixed(0)} s more\n`);
      return ok;
    },
  };
}

/** Beside everything else, on what the other steps leave of the processors. */
function nativeTestsBeside(title, script) {
  // Where Linux schedules by session, niceness counts within the session alone, and the session has one of its own.
  const lowly = ['-c', '{ echo 19 >/proc/self/autogroup; } 2>/dev/null; exec nice -n 19 "$@"', 'sh'];
  const step = runBeside(title, 'sh', [...lowly, ...nativeRun(script)]);
  return { finish: async () => countNative(title, script, await step.finish()) };
}

/** From ctest's JUnit file; a run that left none is one failure. */
function countNative(title, script, ok) {
  const junit = junitOf(script);
  if (!existsSync(junit)) return add(title, 0, 1, 0);
  const head = /<testsuite[^>]*>/.exec(readFileSync(junit, 'utf8'))?.[0] ?? '';
  const number = (name) => Number(new RegExp(`\\b${name}="(\\d+)"`).exec(head)?.[1] ?? 0);
  const [tests, failures, skipped] = [number('tests'), number('failures'), number('skipped') + number('disabled')];
  add(title, tests - failures - skipped, Math.max(failures, ok ? 0 : 1), skipped);
}

/** Left alone, jest would keep one core of two for itself, which has nothing to do meanwhile. */
const WORKERS = ['--maxWorkers', String(Math.min(availableParallelism(), 4))];
/** Of the system's, those that another beside them would disturb: they judge leases, false alarms and how soon memory is given back. */
const NEED_THE_MACHINE = 'test/(load|integration/faults)/|integration/memory-pressure';

async function jestTests(title, ...args) {
  const report = join(scratch, `jest-${title.replace(/\W/g, '-')}.json`);
  const ok = await run(title, process.execPath, ['node_modules/jest/bin/jest.js', '--json', '--outputFile', report, ...args]);
  if (!existsSync(report)) return add(title, 0, 1, 0);
  const result = JSON.parse(readFileSync(report, 'utf8'));
  // A suite that could not even be loaded has no failed test of its own.
  const failed = Math.max(result.numFailedTests + result.numRuntimeErrorTestSuites, ok ? 0 : 1);
  add(title, result.numPassedTests, failed, result.numPendingTests + result.numTodoTests);
}

/** Of the benchmarks, which are plain JavaScript. */
function benchTests(title) {
  const files = readdirSync(join(root, 'test', 'bench'), { recursive: true }).filter((file) => file.endsWith('.test.mjs')).map((file) => join('test', 'bench', file));
  process.stdout.write(`\n== ${title}\n`);
  const { status, stdout } = spawnSync(process.execPath, ['--test', '--test-reporter=tap', ...files], { cwd: root, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'], maxBuffer: 1 << 26 });
  const number = (name) => Number(new RegExp(`^# ${name} (\\d+)$`, 'm').exec(stdout)?.[1] ?? 0);
  const failed = number('fail') + number('cancelled');
  if (status !== 0) process.stdout.write(stdout);
  add(title, number('pass'), Math.max(failed, status === 0 ? 0 : 1), number('skipped') + number('todo'));
}

const sanitized = nativeTestsBeside('native engine under AddressSanitizer and UBSan', 'test:native:sanitize');
const types = runBeside('types', 'npx', ['--no-install', 'tsc', '-p', 'tsconfig.check.json']);
await check('lint', 'npx', ['--no-install', 'eslint', '.']);
await check('protocol: lint, generated code is current, compatible with what was committed before', 'node', ['proto/check.mjs']);
await check('no registry address in committed files', 'node', ['test/no-registry-address.mjs']);
count('types', await types.finish());

/** What tests need beyond this repository. Where it is missing they are skipped, which is a failure in CI. */
function wanted(name, there, skipped) {
  if (there) return;
  process.stdout.write(`   ${name.toUpperCase()} IS MISSING: ${skipped}${inCi ? ', which is a failure in CI' : ''}\n`);
  if (inCi) add(`${name} is there`, 0, 1, 0);
}

process.stdout.write('\n== programs that tests need\n');
wanted('Jaeger', Boolean(process.env.JAEGER_URL) || await run('Jaeger is there, or can be built', 'node', ['services/demo/dist/jaeger-install.js']), 'every test of traces is skipped');
wanted('helm', await run('helm is there, or can be fetched', 'node', ['-r', './test/harness/typescript.js', 'test/harness/helm.ts']), 'the chart is not read');
for (const name of ['haproxy', 'promtool', 'prometheus', 'docker-compose']) {
  wanted(name, (process.env.PATH ?? '').split(':').some((folder) => existsSync(join(folder, name))), 'tests of deploy/compose are skipped');
}

await nativeTests('native engine', 'test:native');
await jestTests('unit tests', '--selectProjects', 'unit', ...WORKERS);
benchTests('benchmarks');
await jestTests('system tests', '--selectProjects', 'system', ...WORKERS, '--testPathIgnorePatterns', NEED_THE_MACHINE);
await jestTests('system tests that need the machine', '--selectProjects', 'system', '--runInBand', '--testPathPatterns', NEED_THE_MACHINE);
await sanitized.finish();

rmSync(scratch, { recursive: true, force: true });
for (const trouble of troubles) process.stdout.write(`\n${trouble}`);
process.stdout.write(`\n${sum.passed} passed, ${sum.failed} failed, ${sum.skipped} skipped\n`);
process.exitCode = sum.failed > 0 ? 1 : 0;
