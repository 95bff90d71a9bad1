/**
 * The whole suite, in one run with one sum: checks (each counts as one test), C++ tests through ctest, plain and under
 * sanitizers, TypeScript tests through jest, the benchmarks' through Node's own runner. The last line is `N passed, M failed, K skipped`.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';

const root = join(import.meta.dirname ?? new URL('.', import.meta.url).pathname, '..');
const inCi = ['true', '1'].includes(process.env.CI ?? '');
const scratch = mkdtempSync(join(tmpdir(), 'moefleet-test-'));
const sum = { passed: 0, failed: 0, skipped: 0 };
const troubles = [];

/** Several times what the longest step takes: a step that hangs is a failure, not a run without end. */
const STEP_LIMIT_MS = 20 * 60_000;

function run(title, command, args, env = {}) {
  process.stdout.write(`\n== ${title}\n`);
  const begun = Date.now();
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit', env: { ...process.env, ...env }, timeout: STEP_LIMIT_MS, killSignal: 'SIGKILL' });
  if (error) process.stdout.write(`   ${title}: ${error.code === 'ETIMEDOUT' ? `stopped after ${STEP_LIMIT_MS / 60_000} minutes` : error.message}\n`);
  process.stdout.write(`   ${((Date.now() - begun) / 1000).toFixed(0)} s\n`);
  return status === 0;
}

function add(title, passed, failed, skipped) {
  sum.passed += passed;
  sum.failed += failed;
  sum.skipped += skipped;
  if (failed > 0) troubles.push(`${title}: ${failed} failed`);
}

function check(title, command, args, env) {
  const ok = run(title, command, args, env);
  add(title, ok ? 1 : 0, ok ? 0 : 1, 0);
}

/** Counts a JUnit file of ctest; a run that left none is one failure. */
function nativeTests(title, script) {
  const junit = join(scratch, `${script.replace(/\W/g, '-')}.xml`);
  const ok = run(title, 'npm', ['run', '--silent', script, '-w', '@moefleet/edge-agent', '--', '--junit', junit]);
  if (!existsSync(junit)) return add(title, 0, 1, 0);
  const head = /<testsuite[^>]*>/.exec(readFileSync(junit, 'utf8'))?.[0] ?? '';
  const number = (name) => Number(new RegExp(`\\b${name}="(\\d+)"`).exec(head)?.[1] ?? 0);
  const [tests, failures, skipped] = [number('tests'), number('failures'), number('skipped') + number('disabled')];
  add(title, tests - failures - skipped, Math.max(failures, ok ? 0 : 1), skipped);
}

function jestTests(title, project) {
  const report = join(scratch, `jest-${project}.json`);
  const ok = run(title, process.execPath, ['node_modules/jest/bin/jest.js', '--selectProjects', project, '--json', '--outputFile', report,
    // Left alone, jest would keep one core of two for itself, which has nothing to do meanwhile.
    ...(project === 'system' ? ['--runInBand'] : ['--maxWorkers', String(Math.min(availableParallelism(), 4))])]);
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

check('lint', 'npx', ['--no-install', 'eslint', '.']);
check('types', 'npx', ['--no-install', 'tsc', '-p', 'tsconfig.check.json']);
check('protocol: lint, generated code is current, compatible with what was committed before', 'node', ['proto/check.mjs']);
check('no registry address in committed files', 'node', ['test/no-registry-address.mjs']);

/** What tests need beyond this repository. Where it is missing they are skipped, which is a failure in CI. */
function wanted(name, there, skipped) {
  if (there) return;
  process.stdout.write(`   ${name.toUpperCase()} IS MISSING: ${skipped}${inCi ? ', which is a failure in CI' : ''}\n`);
  if (inCi) add(`${name} is there`, 0, 1, 0);
}

process.stdout.write('\n== programs that tests need\n');
wanted('Jaeger', Boolean(process.env.JAEGER_URL) || run('Jaeger is there, or can be built', 'node', ['services/demo/dist/jaeger-install.js']), 'every test of traces is skipped');
wanted('helm', run('helm is there, or can be fetched', 'node', ['-r', './test/harness/typescript.js', 'test/harness/helm.ts']), 'the chart is not read');
for (const name of ['haproxy', 'promtool', 'prometheus', 'docker-compose']) {
  wanted(name, (process.env.PATH ?? '').split(':').some((folder) => existsSync(join(folder, name))), 'tests of deploy/compose are skipped');
}

nativeTests('native engine', 'test:native');
nativeTests('native engine under AddressSanitizer and UBSan', 'test:native:sanitize');
jestTests('unit tests', 'unit');
benchTests('benchmarks');
jestTests('system tests', 'system');

rmSync(scratch, { recursive: true, force: true });
for (const trouble of troubles) process.stdout.write(`\n${trouble}`);
process.stdout.write(`\n${sum.passed} passed, ${sum.failed} failed, ${sum.skipped} skipped\n`);
process.exitCode = sum.failed > 0 ? 1 : 0;
