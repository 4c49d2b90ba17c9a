# SPDX-License-Identifier: Apache-2.0
"""A real Kubernetes API for the tests of the role dynamo: etcd, kube-apiserver and kube-controller-manager."""
