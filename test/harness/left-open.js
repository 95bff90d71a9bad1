/**
 * Jest's last act: what keeps the process alive after the tests is named, and ends with it. Jest itself only says that
 * something does, and then waits for ever.
 */
const GRACE_MS = 10_000;

function describe(handle) {
  const kind = handle.constructor?.name ?? typeof handle;
  if (kind === 'ChildProcess') return `ChildProcess ${handle.pid}: ${handle.spawnargs?.join(' ')}`;
  if (kind === 'Socket' || kind === 'TLSSocket') return `${kind} ${handle.localAddress}:${handle.localPort} to ${handle.remoteAddress}:${handle.remotePort}${handle.connecting ? ' (connecting)' : ''}`;
  if (kind === 'Server') return `Server on ${JSON.stringify(handle.address())}`;
  return kind;
}

module.exports = async function nameWhatIsLeftOpen() {
  setTimeout(() => {
    process.stderr.write(`\nStill open ${GRACE_MS / 1000} s after the last test: ${process.getActiveResourcesInfo().join(', ')}\n`);
    for (const handle of process._getActiveHandles()) process.stderr.write(`  ${describe(handle)}\n`);
    process.exit();
  }, Number(process.env.MOEFLEET_TEST_GRACE_MS ?? GRACE_MS)).unref();
};
