/**
 * Three checks of the protocol: the files are tidy (buf lint), the generated code is what they generate, and nothing in
 * them breaks an agent or coordinator built from the commit before (buf breaking).
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const here = new URL('.', import.meta.url).pathname;
const buf = join(here, '..', 'node_modules', '.bin', 'buf');

function run(args, cwd = here) {
  execFileSync(buf, args, { cwd, stdio: 'inherit' });
}

run(['lint']);
isCurrent();
breaksNothing();

function isCurrent() {
  // Beside this folder, so that the relative path of the plugin holds.
  const copy = mkdtempSync(join(here, '..', '.proto-check-'));
  try {
    for (const entry of ['moefleet', 'buf.yaml', 'buf.gen.yaml']) cpSync(join(here, entry), join(copy, entry), { recursive: true });
    run(['generate'], copy);
    run(['build', '-o', 'moefleet.binpb'], copy);
    const differs = spawnSync('diff', ['-r', join(here, 'src', 'gen'), join(copy, 'src', 'gen')], { stdio: 'inherit' }).status !== 0
      || !readFileSync(join(here, 'moefleet.binpb')).equals(readFileSync(join(copy, 'moefleet.binpb')));
    if (differs) throw new Error('generated code is not current; run: npm run generate');
  } finally {
    rmSync(copy, { recursive: true, force: true });
  }
}

/** Against the last release tag, else the commit before this one; a history without either has nothing to break. */
function breaksNothing() {
  const git = (args) => spawnSync('git', args, { cwd: here, encoding: 'utf8' });
  const tag = git(['describe', '--tags', '--abbrev=0']);
  const before = tag.status === 0 ? tag.stdout.trim() : git(['rev-parse', '--verify', '--quiet', 'HEAD~1']).stdout.trim();
  if (!before || git(['cat-file', '-e', `${before}:proto/buf.yaml`]).status !== 0) return;
  const old = mkdtempSync(join(tmpdir(), 'moefleet-proto-'));
  try {
    execFileSync('sh', ['-c', `git archive ${before} proto | tar -x -C "${old}"`], { cwd: join(here, '..') });
    run(['breaking', '--against', join(old, 'proto')]);
  } finally {
    rmSync(old, { recursive: true, force: true });
  }
}
