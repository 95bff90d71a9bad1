/** How a coordinator's operator API is dialled: plaintext, or TLS 1.3 to whoever the fleet's CA calls a coordinator. */
import { type ChannelCredentials, type ClientOptions, credentials } from '@grpc/grpc-js';
import { bearerInterceptor } from '@moefleet/proto';
import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createSecureContext } from 'node:tls';
import { COORDINATOR_NAME } from '@moefleet/runtime';
import { UsageFailure } from './failure';

export interface OperatorChannel {
  credentials: ChannelCredentials;
  options: ClientOptions;
  /** what else may be wrong where nothing answers, as the end of a sentence; `said` is what gRPC says */
  hint(said: string): string;
}

export const PLAINTEXT: OperatorChannel = {
  credentials: credentials.createInsecure(),
  options: {},
  // A port where nobody listens says so; one that speaks TLS just hangs up.
  hint: (said) => (/ECONNREFUSED|ENOTFOUND/.test(said) ? '' : '; if it runs with --tls-dir, give its fleet\'s ca.pem with --ca'),
};

/** `caFile`: empty for plaintext; `token`: null to send none. Throws UsageFailure, which names the file. */
export function readOperatorChannel(caFile: string, token: string | null): OperatorChannel {
  const channel = caFile ? tlsChannel(caFile) : PLAINTEXT;
  return token === null ? channel : { ...channel, options: { ...channel.options, interceptors: [bearerInterceptor(token)] } };
}

function tlsChannel(caFile: string): OperatorChannel {
  return {
    credentials: credentials.createFromSecureContext(createSecureContext({ ca: readCa(caFile), minVersion: 'TLSv1.3' })),
    options: { 'grpc.ssl_target_name_override': COORDINATOR_NAME },
    hint: (said) => tlsHint(said, caFile),
  };
}

function readCa(file: string): Buffer {
  try {
    const pem = readFileSync(file);
    new X509Certificate(pem);
    return pem;
  } catch (cause) {
    throw new UsageFailure(`--ca: "${file}" is no certificate that can be read (${(cause as Error).message}); copy ca.pem from the folder that \`moefleet fleet init\` made`, { cause });
  }
}

function tlsHint(said: string, caFile: string): string {
  if (/wrong version number|packet length too long/i.test(said)) return '; it speaks plaintext, so leave out --ca and MOEFLEET_CA';
  if (/certificate|altname/i.test(said)) return `; its certificate is not from the fleet of ${caFile}, or not valid by this machine's clock`;
  return '';
}
