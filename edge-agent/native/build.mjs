#!/usr/bin/env node
/**
 * Builds the native engine: headers from the source bundle that the pinned `node-llama-cpp` ships, libraries from its
 * prebuilt package for this platform. `node build.mjs` leaves `build/moefleet_engine.node` and `build/moefleet_bench`,
 * each put into place in one rename so that a running process never sees half a file. `--test` builds and runs the C++ tests, `--sanitize` does
 * so under AddressSanitizer and UBSan; `--junit FILE` has the results written there too. `--fuzz SECONDS` builds the fuzz
 * targets with clang and runs each for so long. `--bundle x64|arm64` leaves the addon of a bundle for that processor,
 * which looks for llama.cpp beside itself, in `build/bundle-<arch>/`, cross-compiled where this machine has another. Does nothing, quietly, when everything is up to date.
 */
import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const require = createRequire(import.meta.url);
const wantTests = process.argv.includes('--test') || process.argv.includes('--sanitize');
const sanitize = process.argv.includes('--sanitize');
const junit = process.argv.includes('--junit') ? resolve(process.argv[process.argv.indexOf('--junit') + 1] ?? '') : null;
const fuzzSeconds = process.argv.includes('--fuzz') ? Number(process.argv[process.argv.indexOf('--fuzz') + 1] ?? 60) : null;
if (fuzzSeconds !== null && !(fuzzSeconds > 0)) throw new RangeError('--fuzz: give the seconds for each target, such as --fuzz 600');
const bundleArch = process.argv.includes('--bundle') ? process.argv[process.argv.indexOf('--bundle') + 1] : null;
const arch = bundleArch ?? process.arch;
const jobs = process.env.MOEFLEET_BUILD_JOBS ?? '2';

function fail(message) {
  console.error(`native engine: ${message}`);
  process.exit(1);
}

function run(command, args, what) {
  const result = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 64 << 20 });
  if (result.status !== 0) {
    process.stderr.write(`${result.stdout ?? ''}${result.stderr ?? ''}`);
    fail(`${what} failed: ${command} ${args.join(' ')}`);
  }
  return result.stdout;
}

/** By Node's names: how Debian calls the compilers for a processor that is not this machine's. */
const CROSS = {
  x64: { prefix: 'x86_64-linux-gnu-', processor: 'x86_64', package: 'g++-x86-64-linux-gnu' },
  arm64: { prefix: 'aarch64-linux-gnu-', processor: 'aarch64', package: 'g++-aarch64-linux-gnu' },
};
if (bundleArch !== null && !CROSS[bundleArch]) fail(`--bundle ${bundleArch}: give one of ${Object.keys(CROSS).join(', ')}`);
const cross = arch === process.arch ? null : CROSS[arch];

function requireTools() {
  const needed = { [cross ? `${cross.prefix}g++` : 'g++']: cross ? cross.package : 'g++', cmake: 'cmake', git: 'git', make: 'make' };
  const missing = Object.keys(needed).filter((tool) => spawnSync(tool, ['--version']).status !== 0);
  if (missing.length > 0) {
    fail(`${missing.join(', ')} not found; on Debian or Ubuntu: sudo apt-get install -y ${missing.map((tool) => needed[tool]).join(' ')}`);
  }
}

/** Goes on as a process that alone builds in `folder`, where two would write each other's files. The kernel keeps the lock while its holder lives. */
function takeTurns(folder) {
  const lock = join(folder, '.lock');
  if (process.env.MOEFLEET_BUILD_LOCK === lock || spawnSync('flock', ['--version']).status !== 0) return;
  mkdirSync(folder, { recursive: true });
  const { status } = spawnSync('flock', [lock, process.execPath, ...process.argv.slice(1)], { stdio: 'inherit', env: { ...process.env, MOEFLEET_BUILD_LOCK: lock } });
  process.exit(status ?? 1);
}

function packageFolder(name) {
  for (let folder = here; folder !== dirname(folder); folder = dirname(folder)) {
    const candidate = join(folder, 'node_modules', name);
    if (existsSync(candidate)) return candidate;
  }
  return null;
}

function prebuiltFolder() {
  const platform = `linux-${arch === 'arm' ? 'armv7l' : arch}`;
  const folder = packageFolder(`@node-llama-cpp/${platform}`);
  if (process.platform !== 'linux' || folder === null) {
    fail(`no prebuilt llama.cpp for ${process.platform}-${arch} (expected @node-llama-cpp/${platform})`);
  }
  return join(folder, 'bins', platform);
}

/** What of llama.cpp's source is needed: headers, SHA-256, which no prebuilt library has, and the licence for bundles. */
const LLAMA_SOURCES = ['/LICENSE', '/include/', '/ggml/include/', '/ggml/src/ggml-backend-impl.h', '/src/llama-ext.h', '/vendor/hash/sha256/', '/vendor/hash/rotate-bits/'];

/** A sparse checkout of the bundle, made again when the pinned release or the list above changes. */
function checkOutSources(llama, release) {
  const target = join(here, 'build', 'llama-src');
  const stamp = join(target, '.contents');
  const contents = [release, ...LLAMA_SOURCES, ''].join('\n');
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === contents) return target;
  rmSync(target, { recursive: true, force: true });
  mkdirSync(join(here, 'build'), { recursive: true });
  const part = `${target}.part-${process.pid}`;
  rmSync(part, { recursive: true, force: true });
  run('git', ['clone', '-q', '--no-checkout', join(llama, 'gitRelease.bundle'), part], 'cloning llama.cpp');
  run('git', ['-C', part, 'sparse-checkout', 'set', '--no-cone', ...LLAMA_SOURCES], 'choosing sources');
  run('git', ['-C', part, 'checkout', '-q', 'HEAD'], 'checking out sources');
  writeFileSync(join(part, '.contents'), contents);
  rmSync(join(part, '.git'), { recursive: true, force: true });
  renameSync(part, target);
  return target;
}

requireTools();
const nodeLlama = packageFolder('node-llama-cpp') ?? fail('node-llama-cpp is not installed; run: npm install');
const llama = join(nodeLlama, 'llama');
const { release } = JSON.parse(readFileSync(join(llama, 'binariesGithubRelease.json'), 'utf8'));
const headers = checkOutSources(llama, release);
const prebuilt = prebuiltFolder();

const folder = join(here, fuzzSeconds !== null ? 'build-fuzz' : sanitize ? 'build-asan' : wantTests ? 'build-test' : bundleArch !== null ? join('build', `cmake-bundle-${arch}`) : join('build', 'cmake'));
takeTurns(folder);
run('cmake', ['-S', here, '-B', folder, '-DCMAKE_BUILD_TYPE=Release',
  `-DLLAMA_HEADERS=${headers}`, `-DLLAMA_LIBS=${prebuilt}`, `-DLLAMA_RELEASE=${release}`,
  `-DNAPI_INCLUDE=${dirname(require.resolve('node-addon-api'))}`, `-DNODE_API_INCLUDE=${require('node-api-headers').include_dir}`,
  `-DMOEFLEET_TESTS=${wantTests ? 'ON' : 'OFF'}`, `-DMOEFLEET_SANITIZE=${sanitize ? 'ON' : 'OFF'}`,
  `-DMOEFLEET_FUZZ=${fuzzSeconds === null ? 'OFF' : 'ON'}`, ...(fuzzSeconds === null ? [] : ['-DCMAKE_C_COMPILER=clang', '-DCMAKE_CXX_COMPILER=clang++']),
  ...(bundleArch === null ? [] : ['-DMOEFLEET_ADDON_RPATH=$ORIGIN']),
  ...(cross === null ? [] : ['-DCMAKE_SYSTEM_NAME=Linux', `-DCMAKE_SYSTEM_PROCESSOR=${cross.processor}`, `-DCMAKE_C_COMPILER=${cross.prefix}gcc`, `-DCMAKE_CXX_COMPILER=${cross.prefix}g++`])], 'configuring');
run('cmake', ['--build', folder, '-j', jobs], 'building');

if (fuzzSeconds !== null) {
  for (const target of ['gguf', 'pack', 'part', 'prefetch']) {
    const corpus = join(folder, `corpus-${target}`);
    mkdirSync(corpus, { recursive: true });
    run(join(folder, `${target}-replay`), ['--write-seeds', corpus], 'writing seeds');
    const fuzz = spawnSync(join(folder, `${target}-fuzz`), [`-max_total_time=${fuzzSeconds}`, '-max_len=66000', `-artifact_prefix=${folder}/`, '-print_final_stats=1', corpus], { stdio: 'inherit' });
    if (fuzz.status !== 0) fail(`${target}-fuzz found something; run it again with: ${join(folder, `${target}-replay`)} FILE`);
  }
  process.exit(0);
}

if (wantTests) {
  const tests = spawnSync('ctest', ['--test-dir', folder, '--parallel', jobs, '--output-on-failure', ...(junit ? ['--output-junit', junit] : [])], { stdio: 'inherit' });
  process.exit(tests.status ?? 1);
}

const results = bundleArch === null ? join(here, 'build') : join(here, 'build', `bundle-${arch}`);
mkdirSync(results, { recursive: true });
for (const name of bundleArch === null ? ['moefleet_engine.node', 'moefleet_bench'] : ['moefleet_engine.node', 'routing_decisions']) {
  const built = join(folder, name);
  const target = join(results, name);
  if (existsSync(target) && statSync(target).mtimeMs >= statSync(built).mtimeMs) continue;
  cpSync(built, `${target}.part`);
  renameSync(`${target}.part`, target);
}
