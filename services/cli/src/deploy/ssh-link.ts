/**
 * One host over the system's ssh. One connection is made and kept (ControlMaster); commands and copies are sessions of
 * it, so that a host costs one handshake. The connection's own session reads standard input until that ends, so that it
 * goes when this program goes, however it ends.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { createReadStream } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { Transform } from 'node:stream';
import { shellQuote } from '../shell-quote';
import { DeployError } from './deploy-error';
import type { HostTarget } from './host-target';
import { explainSsh } from './ssh-failure';

/** The longest a host may take to answer the first time. */
const CONNECT_TIMEOUT_S = 10;
/** A connection that is silent for three times this long is over. */
const ALIVE_INTERVAL_S = 10;
const READY = 'moefleet-connected';

const INTERRUPTED = () => new DeployError('interrupted', 'run the same command again; it goes on where it was');

export interface SshOptions {
  /** -F */
  configFile?: string;
  /** -o, each `Name=value` */
  options: readonly string[];
}

export interface Answer { stdout: string; stderr: string; exitCode: number; }

export class SshLink {
  private folder: string | null = null;
  private master: ChildProcess | null = null;
  private said = '';
  private lost = false;

  /** `log` is given what is run and said, for the host's log. */
  constructor(readonly target: HostTarget, private readonly ssh: SshOptions, private readonly signal: AbortSignal, private readonly log: (line: string) => void) {}

  /** Throws DeployError with ssh's own reason and its remedy. */
  async open(): Promise<void> {
    this.folder = await mkdtemp(join(tmpdir(), 'mf-ssh-'));
    const child = spawn('ssh', [...this.args('-M'), '--', this.target.host, `echo ${READY}; exec cat >/dev/null`], { stdio: ['pipe', 'pipe', 'pipe'] });
    this.master = child;
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.said = (this.said + text).slice(-16_384);
      this.log(`ssh: ${text.trimEnd()}`);
    });
    child.stdin.on('error', () => {});
    child.once('close', () => { this.lost = true; });
    await new Promise<void>((resolve, reject) => {
      let seen = '';
      child.stdout.setEncoding('utf8').on('data', (text: string) => {
        seen += text;
        if (seen.includes(READY)) resolve();
      });
      child.once('error', (error) => reject(new DeployError(`ssh cannot be started: ${error.message}`, 'install it: apt-get install openssh-client')));
      child.once('close', (code) => reject(this.signal.aborted ? INTERRUPTED() : explainSsh(this.target, this.said, code)));
      // Interrupted: `close` ends it.
      const abort = () => reject(INTERRUPTED());
      this.signal.addEventListener('abort', abort, { once: true });
      child.once('close', () => this.signal.removeEventListener('abort', abort));
      if (this.signal.aborted) abort();
    });
  }

  /** Runs a script with arguments, as root where that takes no password, else as who logs in. Throws DeployError where it fails. */
  async script(name: string, script: string, args: readonly string[]): Promise<string> {
    const { stdout, stderr, exitCode } = await this.run(name, ['sh', '-s', '--', ...args], script);
    if (exitCode === 0) return stdout;
    const last = stderr.trim().split('\n').at(-1)?.replace(/^moefleet: /, '') || `it ended with code ${exitCode}`;
    throw new DeployError(`${name}: ${last}`, /No space left|disk .* full/i.test(stderr) ? 'free some space on the device, then run the same command again'
      : 'see the host\'s log; then run the same command again, it goes on where it was');
  }

  /** `words` as one command; rejects only where the connection ends. `input` is all of its standard input. */
  async run(name: string, words: readonly string[], input = ''): Promise<Answer> {
    const child = this.session(words);
    let [stdout, stderr] = ['', ''];
    child.stdout!.setEncoding('utf8').on('data', (text: string) => { stdout += text; });
    child.stderr!.setEncoding('utf8').on('data', (text: string) => { stderr += text; });
    child.stdin!.on('error', () => {});
    child.stdin!.end(input);
    const exitCode = await this.ended(child);
    this.log(`${name}: exit ${exitCode}${stderr.trim() && `\n  ${stderr.trim().replaceAll('\n', '\n  ')}`}`);
    // null: ssh was ended by a signal, ours where the command is interrupted.
    if (exitCode === 255 || exitCode === null || this.lost) throw this.failure(stderr);
    return { stdout, stderr, exitCode };
  }

  /** Appends a local file from `offset` on to one of the device's; `onBytes` is told how far the file has gone. */
  async append(local: string, remote: string, offset: number, onBytes: (sent: number) => void): Promise<void> {
    const child = this.session(['sh', '-c', 'cat >>"$1"', 'sh', remote]);
    let stderr = '';
    child.stderr!.setEncoding('utf8').on('data', (text: string) => { stderr += text; });
    child.stdout!.resume();
    let sent = offset;
    const count = new Transform({
      transform(chunk: Buffer, _encoding, done) {
        sent += chunk.length;
        onBytes(sent);
        done(null, chunk);
      },
    });
    const ended = this.ended(child);
    // What breaks a copy is told by ssh or the device; that the pipe to them broke is no news.
    const copied = await pipeline(createReadStream(local, { start: offset, highWaterMark: 1 << 20 }), count, child.stdin!).then(() => null, (error: Error) => error);
    const exitCode = await ended;
    if (exitCode === 0 && copied === null) return;
    this.log(`copy to ${remote}: exit ${exitCode} after ${sent} bytes; ${stderr.trim()}`);
    if (/No space left/.test(stderr)) throw new DeployError(`the disk of ${remote} is full`, 'free some space on the device, then run the same command again; it goes on where it was');
    throw this.failure(stderr || copied?.message || '');
  }

  async close(): Promise<void> {
    const { master, folder } = this;
    this.master = null;
    if (master && !this.lost) {
      const ended = new Promise((resolve) => master.once('close', resolve));
      master.stdin?.end();
      const late = setTimeout(() => master.kill('SIGKILL'), 3000);
      await ended;
      clearTimeout(late);
    }
    if (folder) await rm(folder, { recursive: true, force: true });
  }

  private failure(stderr: string): DeployError {
    if (this.signal.aborted) return INTERRUPTED();
    const error = explainSsh(this.target, `${this.said}\n${stderr}`, 255);
    return this.lost || /closed|reset|broken pipe|mux_client|ssh failed/i.test(error.message)
      ? new DeployError(`the ssh connection ended half-way (${error.message.replace(/^[^:]*: (ssh failed: )?/, '')})`, 'run the same command again when the device can be reached; it goes on where it was') : error;
  }

  private session(words: readonly string[]): ChildProcess {
    const command = `sh -c ${shellQuote('if [ "$(id -u)" != 0 ] && sudo -n true 2>/dev/null; then exec sudo -n "$@"; else exec "$@"; fi')} sh ${words.map(shellQuote).join(' ')}`;
    const child = spawn('ssh', [...this.args(), '--', this.target.host, command], { stdio: ['pipe', 'pipe', 'pipe'] });
    const abort = () => child.kill('SIGTERM');
    this.signal.addEventListener('abort', abort, { once: true });
    child.once('close', () => this.signal.removeEventListener('abort', abort));
    if (this.signal.aborted) abort();
    return child;
  }

  private ended(child: ChildProcess): Promise<number | null> {
    return new Promise((resolve, reject) => {
      child.once('error', (error) => reject(new DeployError(`ssh cannot be started: ${error.message}`, 'install it: apt-get install openssh-client')));
      child.once('close', (code) => resolve(code));
    });
  }

  private args(...more: string[]): string[] {
    const { user, port, identityFile } = this.target;
    return [
      ...more,
      ...(this.ssh.configFile ? ['-F', this.ssh.configFile] : []),
      ...this.ssh.options.flatMap((option) => ['-o', option]),
      '-o', 'BatchMode=yes', '-o', `ConnectTimeout=${CONNECT_TIMEOUT_S}`, '-o', `ServerAliveInterval=${ALIVE_INTERVAL_S}`,
      '-o', `ControlPath=${join(this.folder!, 'c')}`, '-o', 'ControlPersist=no', '-T',
      ...(user ? ['-l', user] : []), ...(port ? ['-p', String(port)] : []), ...(identityFile ? ['-i', identityFile] : []),
    ];
  }
}
